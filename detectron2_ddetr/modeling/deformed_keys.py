"""Attention to keys at learned places, the same for all queries (deformable attention of DAT)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .biased_attention import attend, attend_at_once, softmax_weights
from .bilinear import sample_rows
from .channels_last import ChannelNorm, Pointwise, depthwise
from .position_bias import AbsoluteBias, RelativeBias
from .precision import at_least_float32
from .tracing import is_recorded


class Deformation(NamedTuple):
    """
    Where the keys are, (y, x) in [-1, 1] of the map, for each of G groups of channels. No query
    has a say in it.

    offsets: (N, G, 2, Hk, Wk), what the network of offsets puts out.
    reference: (Hk, Wk, 2), the regular grid.
    positions: (N, G, Hk, Wk, 2).
    """

    offsets: Tensor
    reference: Tensor
    positions: Tensor


class DeformedKeyAttention(nn.Module):
    """
    Multi-head attention of all cells of a map to keys that lie where a small network moves a
    regular grid to (DAT, https://arxiv.org/abs/2201.00520, Sec. 3.2; DAT++,
    https://arxiv.org/abs/2309.01430).

    The network sees the queries, and is one for all groups of channels. Keys and values are
    projections of what the map holds at these places, read bilinearly; the bias of a logit, with
    `bias` "relative", is read from a table at the distance of query and key.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        map_size: Sequence[int],
        groups: int,
        kernel_size: int,
        stride: int,
        offset_range_factor: float,
        bias: str = "relative",
        grid: str | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        """
        Args:
            map_size: (H, W) that the table of biases is made for; others are scaled to it.
            groups: of channels, each with offsets of its own and as many of the heads.
            kernel_size: of the first layer of the network of offsets.
            stride: cells from key to key of the regular grid, along both axes.
            offset_range_factor: how many half cells of its grid a key moves at most; negative for
                any distance, but not out of the map.
            bias: "relative", "absolute" (a table for each query and key) or "none".
            grid: where in [0, 1] cell i of n is: "half_pixel", as in DAT, at (i + 0.5) / n;
                "end_point", as in DAT++ and in the authors' code for detection, at i / (n - 1) for
                queries and (i + 0.5) / (n - 1) for keys. None for that of DAT where a key has a
                range, and that of DAT++ where not.
        """
        super().__init__()
        if dim % heads or groups < 1 or heads % groups:
            raise ValueError(f"{heads} heads must divide {dim} channels, and {groups} groups them")
        if bias not in ("relative", "absolute", "none"):
            raise ValueError(f"bias must be relative, absolute or none, got {bias!r}")
        if grid is None:
            grid = "end_point" if offset_range_factor < 0 else "half_pixel"
        if grid not in ("half_pixel", "end_point"):
            raise ValueError(f"grid must be half_pixel or end_point, got {grid!r}")
        self.heads, self.groups, self.stride = heads, groups, stride
        self.offset_range_factor, self.bias, self.grid = offset_range_factor, bias, grid
        width = dim // groups
        self.conv_offset = nn.Sequential(
            depthwise(width, kernel_size, stride, 0 if kernel_size == stride else kernel_size // 2),
            ChannelNorm(width),
            nn.GELU(),
            Pointwise(width, 2, bias=False),
        )
        self.proj_q, self.proj_k = Pointwise(dim, dim), Pointwise(dim, dim)
        self.proj_v, self.proj_out = Pointwise(dim, dim), Pointwise(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        h, w = map_size
        if bias == "none":
            self.rpe_table = None
        else:
            keys = (h // stride) * (w // stride)
            shape = (2 * h - 1, 2 * w - 1) if bias == "relative" else (h * w, keys)
            self.rpe_table = nn.Parameter(torch.zeros(heads, *shape))
            nn.init.trunc_normal_(self.rpe_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        q = self.proj_q(x)
        positions = self.deformation(q).positions.flatten(2, 3)
        operands = self._operands(x, q, positions)
        drops = self.training and self.attn_drop.p > 0
        if drops or is_recorded(x):
            out = attend_at_once(*operands, self.attn_drop)
        else:
            out = attend(*operands)
        return self.proj_drop(self.proj_out(out.view(x.shape)))

    def deformation(self, q: Tensor) -> Deformation:
        """Of projected queries, (N, H, W, C)."""
        n, height, width, _ = q.shape
        grouped = q.unflatten(3, (self.groups, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        offsets = at_least_float32(self.conv_offset(grouped))  # (N*G, Hk, Wk, 2)
        sizes = offsets.shape[1:3]
        reference = torch.stack(
            torch.meshgrid(*(self._key_axis(s, offsets) for s in sizes), indexing="ij"), dim=-1
        )
        if self.offset_range_factor < 0:
            positions = (reference + offsets).clamp(-1, 1)
        else:
            cell = [self.offset_range_factor / self._intervals(size) for size in sizes]
            positions = reference + offsets.tanh() * offsets.new_tensor(cell)
        offsets, positions = (t.unflatten(0, (n, self.groups)) for t in (offsets, positions))
        return Deformation(offsets.permute(0, 1, 4, 2, 3), reference, positions)

    def weights(self, x: Tensor) -> tuple[Tensor, Deformation]:
        """
        What :meth:`forward` attends to, to be looked at.

        Returns:
            (N, M, H * W, Hk, Wk), of each query the weights of the keys, and where these are.
        """
        q = self.proj_q(x)
        deformation = self.deformation(q)
        q, k, _, bias = self._operands(x, q, deformation.positions.flatten(2, 3))
        weights = softmax_weights(q, k, bias)
        return weights.transpose(2, 3).unflatten(3, deformation.reference.shape[:2]), deformation

    def _intervals(self, size: int) -> int:
        """How many cells of the grid lie between -1 and 1; a single cell lies in the middle."""
        return size if self.grid == "half_pixel" else max(size - 1, 1)

    def _key_axis(self, size: int, like: Tensor) -> Tensor:
        index = torch.arange(size, dtype=like.dtype, device=like.device)
        return (index + 0.5) / self._intervals(size) * 2 - 1

    def _query_axis(self, size: int, like: Tensor) -> Tensor:
        if self.grid == "half_pixel":
            return self._key_axis(size, like)
        index = torch.arange(size, dtype=like.dtype, device=like.device)
        return index / self._intervals(size) * 2 - 1

    def _operands(
        self, x: Tensor, q: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, RelativeBias | AbsoluteBias | None]:
        """Of :func:`attend`, with keys and values at `positions`, (N, G, K, 2)."""
        sampled = sample_rows(x.unflatten(3, (self.groups, -1)), positions)  # (N, G, K, C/G)
        sampled = sampled.transpose(1, 2).flatten(2).to(x.dtype)
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for t in (q.flatten(1, 2), self.proj_k(sampled), self.proj_v(sampled))
        )
        return q * q.shape[3] ** -0.5, k, v, self._position_bias(positions, *x.shape[1:3])

    def _position_bias(
        self, positions: Tensor, height: int, width: int
    ) -> RelativeBias | AbsoluteBias | None:
        if self.bias == "none":
            return None
        if self.bias == "absolute":
            return AbsoluteBias.of(self.rpe_table, height * width, positions.shape[2])
        y, x = (self._query_axis(size, positions) for size in (height, width))
        return RelativeBias.at(self.rpe_table, positions, y, x)
