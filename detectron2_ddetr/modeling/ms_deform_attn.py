"""The multi-scale deformable attention module: the operator with its four projections."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .linear import Linear, is_watched
from .ops.extension import HAS_CPU_KERNELS

# The function of the same name is found here too, as before it had a module of its own.
from .ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused  # noqa: F401
from .project_samples import is_less_work, project_samples


class MSDeformAttn(nn.Module):
    """
    Multi-scale deformable attention module, Eq. (3) of the paper, Sec. 4.1.

    References may have 2 numbers (points) or 4 (boxes); the last axis of the call decides.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4):
        """
        Args:
            d_model: C, width of queries and values; divisible by `n_heads`.
            n_levels: L, feature levels.
            n_heads: M.
            n_points: P, samples per head and level.
        """
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads})")
        self.d_model, self.n_levels = d_model, n_levels
        self.n_heads, self.n_points = n_heads, n_points

        self.sampling_offsets = Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks along 2 pi m / M of a square, point k at distance k + 1 (Sec. A.4)."""
        # On the CPU also where the weights are on "meta", which takes many times as long.
        numbers = {"dtype": torch.float32, "device": "cpu"}
        theta = torch.arange(self.n_heads, **numbers) * (2.0 * math.pi / self.n_heads)
        direction = torch.stack((theta.cos(), theta.sin()), dim=-1)  # (M, 2), (x, y)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, self.n_points + 1, **numbers)
        bias = direction[:, None, None, :] * distance[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        level_reference_points: Tensor,
        src: Tensor,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: (N, Q, C), content plus position.
            level_reference_points: (N, Q, L, 2), (x, y), or (N, Q, L, 4), (cx, cy, w, h), in
                [0, 1] of the padded level.
            src: (N, S, C), the flattened maps to read from.
            spatial_shapes: (H_l, W_l) of each level -- height first -- as ints. A tensor is read,
                which on a GPU waits for all work before it.
            padding_mask: (N, S), True = padding, which is read as zero.

        Returns:
            (N, Q, C).

        Raises:
            ValueError: when references have neither 2 nor 4 numbers.
        """
        if isinstance(spatial_shapes, Tensor):
            spatial_shapes = spatial_shapes.tolist()
        per_head = (self.n_heads, self.n_levels * self.n_points)
        samples = (
            spatial_shapes,
            level_reference_points,
            self.sampling_offsets(query).unflatten(-1, (*per_head, 2)),
            self.attention_weights(query).unflatten(-1, per_head),
            [self.n_points] * self.n_levels,
        )
        if self.samples_first(query, src):
            output = project_samples(src, padding_mask, self.value_proj, *samples)
        else:
            value = self.value_proj(src)
            if padding_mask is not None:
                # After the projection, so that its bias does not leak out of padding. In place,
                # since no gradient of the projection asks for what it gave.
                value = value.masked_fill_(padding_mask[..., None], 0.0)
            output = ms_deform_attn_fused(value.unflatten(-1, (self.n_heads, -1)), *samples)
        return self.output_proj(output)

    def samples_first(self, query: Tensor, src: Tensor) -> bool:
        """
        Whether samples are projected, and not `src`: on CPUs, of queries that read little of it.

        Not by what is compiled or exported, which is to be the same for any number of queries and
        tokens, nor past the hooks of the projection.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if src.device.type != "cpu" or not HAS_CPU_KERNELS:
            return False
        if type(self.value_proj) is not Linear or is_watched(self.value_proj):
            return False
        num_samples = query.shape[1] * self.n_heads * self.n_levels * self.n_points
        return is_less_work(num_samples, src, self.value_proj.weight)
