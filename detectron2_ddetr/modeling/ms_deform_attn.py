"""Multi-scale deformable attention: the operator and the module with its four projections."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """
    Multi-scale deformable attention, Eq. (3) of the paper without its two projections.

    Args:
        value: (N, S, M, D), all levels flattened and concatenated, S = sum_l H_l * W_l.
        spatial_shapes: (L, 2) integers, (H_l, W_l) -- height first. Best kept on the CPU, since
            their values are read: on a GPU that waits for all work before it.
        sampling_locations: (N, Q, M, L, P, 2), (x, y) -- width first -- as a fraction of the padded
            level: (0, 0) is the outer corner of its first cell. Outside the level, and where a
            location is not finite, zero is read. Keep them float32 when `value` is 16-bit.
        attention_weights: (N, Q, M, L, P), summing to one over (L, P).

    Returns:
        (N, Q, M * D) in the dtype of `value`; differentiable once in all three float inputs.

    Raises:
        ValueError: when the shapes do not fit together; the message gives both sides.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    sizes = spatial_shapes.tolist()
    areas = [height * width for height, width in sizes]
    if sum(areas) != value.shape[1]:
        raise ValueError(
            f"spatial_shapes cover {sum(areas)} positions but value has {value.shape[1]}"
        )
    num_images, _, num_heads, channels = value.shape
    num_queries = sampling_locations.shape[1]
    # Locations decide: 16-bit values are read in float32.
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # In [-1, 1] of the level, which is what grid_sample wants; anything beyond 2 is outside.
    grid = (2 * sampling_locations.to(dtype) - 1).clamp(-3, 3).nan_to_num(nan=-3.0)
    grid = grid.permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # (N * M, L, P, Q, 2)
    weight = attention_weights.to(dtype).permute(0, 2, 3, 4, 1).flatten(0, 1)  # (N * M, L, P, Q)
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (N * M, D, S)
    levels = maps.split(areas, dim=-1)
    # Level by level, so that the samples of one level only are in memory.
    output = maps.new_zeros(maps.shape[0], channels, num_queries)
    for level, (level_map, size) in enumerate(zip(levels, sizes)):
        sampled = F.grid_sample(level_map.unflatten(-1, size), grid[:, level], align_corners=False)
        output = output + (sampled * weight[:, None, level]).sum(2)  # over P: (N * M, D, Q)
    output = output.view(num_images, num_heads * channels, num_queries).transpose(1, 2)
    return output.to(value.dtype)


def describe_backend() -> str:
    """One line: what computes :func:`ms_deform_attn`, and why."""
    return "PyTorch (grid_sample), because this version has no compiled kernels"


def _check_shapes(value: Tensor, shapes: Tensor, locations: Tensor, attention: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be (N, S, M, D), got shape {tuple(value.shape)}")
    if shapes.dim() != 2 or shapes.shape[1] != 2:
        raise ValueError(f"spatial_shapes must be (L, 2), got shape {tuple(shapes.shape)}")
    if locations.dim() != 6 or locations.shape[5] != 2:
        raise ValueError(
            f"sampling_locations must be (N, Q, M, L, P, 2), got shape {tuple(locations.shape)}"
        )
    if locations.shape[:5] != attention.shape:
        raise ValueError(
            f"attention_weights must be (N, Q, M, L, P) = {tuple(locations.shape[:5])} as in "
            f"sampling_locations, got shape {tuple(attention.shape)}"
        )
    expected = (value.shape[0], value.shape[2], shapes.shape[0])
    got = (locations.shape[0], locations.shape[2], locations.shape[3])
    if got != expected:
        raise ValueError(
            f"sampling_locations have (N, M, L) = {got}, while value and spatial_shapes "
            f"have {expected}"
        )


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

        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks along 2 pi m / M of a square, point k at distance k + 1 (Sec. A.4)."""
        theta = torch.arange(self.n_heads, dtype=torch.float32) * (2.0 * math.pi / self.n_heads)
        direction = torch.stack((theta.cos(), theta.sin()), dim=-1)  # (M, 2), (x, y)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, self.n_points + 1, dtype=torch.float32)
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
        spatial_shapes: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: (N, Q, C), content plus position.
            level_reference_points: (N, Q, L, 2), (x, y), or (N, Q, L, 4), (cx, cy, w, h), in
                [0, 1] of the padded level.
            src: (N, S, C), the flattened maps to read from.
            spatial_shapes: (L, 2) int64, (H_l, W_l) -- height first.
            padding_mask: (N, S), True = padding, which is read as zero.

        Returns:
            (N, Q, C).

        Raises:
            ValueError: when references have neither 2 nor 4 numbers.
        """
        value = self.value_proj(src)
        if padding_mask is not None:
            # After the projection, so that its bias does not leak out of padding.
            value = value.masked_fill(padding_mask[..., None], 0.0)
        per_sample = (self.n_heads, self.n_levels, self.n_points)
        logits = self.attention_weights(query).unflatten(-1, (self.n_heads, -1))
        attention_weights = logits.softmax(-1).unflatten(-1, per_sample[1:])  # jointly over (L, P)
        sampling_offsets = self.sampling_offsets(query).unflatten(-1, (*per_sample, 2))
        output = ms_deform_attn(
            value.unflatten(-1, (self.n_heads, -1)),
            spatial_shapes,
            self.sampling_locations(level_reference_points, sampling_offsets, spatial_shapes),
            attention_weights,
        )
        return self.output_proj(output)

    def sampling_locations(
        self, level_reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """
        (N, Q, M, L, P, 2), (x, y) in [0, 1] of the padded level.

        Offsets are cells of their level around a point (Eq. (3)), or fractions of half a box
        divided by P around a box (Sec. A.4; the division is from the official code).
        """
        reference = level_reference_points[:, :, None, :, None, :]  # (N, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 2:
            # float32 even when the offsets are 16-bit: a coordinate must not be rounded to 16 bits.
            size = spatial_shapes.flip(1)[:, None].to(
                reference, non_blocking=True
            )  # (L, 1, 2), (W, H)
            return reference + sampling_offsets / size
        if reference.shape[-1] == 4:
            return reference[..., :2] + sampling_offsets * (
                reference[..., 2:] * (0.5 / self.n_points)
            )
        raise ValueError(
            "level_reference_points must end in 2 numbers (x, y) or 4 (cx, cy, w, h), "
            f"got shape {tuple(level_reference_points.shape)}"
        )
