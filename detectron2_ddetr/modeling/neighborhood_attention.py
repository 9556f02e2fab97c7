"""Attention of each cell to the k x k cells around it."""

import torch
from torch import Tensor, nn

from .channels_last import padded
from .linear import Linear

#: Queries are taken in squares of this side, which share the keys around them.
_TILE = 8


class NeighborhoodAttention(nn.Module):
    """
    Multi-head attention of each cell to the `kernel_size`^2 cells nearest to it, itself among them
    (https://arxiv.org/abs/2204.07143), with a learned bias for each displacement.

    At the border the neighbourhood is moved inside, so that every cell has as many keys. Maps
    smaller than it are padded with zeros below and right, which are keys like others.
    """

    def __init__(
        self, dim: int, heads: int, kernel_size: int, attn_drop: float = 0.0, proj_drop: float = 0.0
    ):
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}")
        self.heads, self.kernel_size = heads, kernel_size
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        side = 2 * kernel_size - 1
        self.rpb = nn.Parameter(torch.zeros(heads, side, side))
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        n, height, width, channels = x.shape
        x = padded(x, max(height, self.kernel_size), max(width, self.kernel_size))
        rows, columns = (_Axis(s, self.kernel_size, x.device) for s in x.shape[1:3])
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = padded(q * (channels // self.heads) ** -0.5, rows.padded, columns.padded)
        q = q.reshape(n, rows.tiles, _TILE, columns.tiles, _TILE, self.heads, -1)
        k, v = (
            t.index_select(1, rows.keys.flatten())
            .index_select(2, columns.keys.flatten())
            .reshape(n, rows.tiles, rows.span, columns.tiles, columns.span, self.heads, -1)
            for t in (k, v)
        )
        q, k, v = (t.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5) for t in (q, k, v))
        logits = q @ k.transpose(-2, -1) + self._bias(rows, columns)
        x = self.attn_drop(logits.softmax(dim=-1)) @ v  # (N, rows, columns, M, tile^2, D)
        x = x.unflatten(4, (_TILE, _TILE)).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.reshape(n, rows.padded, columns.padded, channels)[:, :height, :width]
        return self.proj_drop(self.proj(x))

    def _bias(self, rows: "_Axis", columns: "_Axis") -> Tensor:
        """(tiles, tiles, M, tile^2, span^2) to add to the logits, -inf for what is not near."""
        side = 2 * self.kernel_size - 1
        one_hot = [
            (axis.displacement[..., None] == torch.arange(side, device=self.rpb.device))
            .flatten(0, 2)
            .to(self.rpb.dtype)
            for axis in (rows, columns)
        ]  # (tiles * tile * span, side) each
        bias = one_hot[0] @ self.rpb @ one_hot[1].T
        far = ~rows.near.flatten()[:, None] | ~columns.near.flatten()
        bias = bias.masked_fill(far, -torch.inf)
        bias = bias.unflatten(2, columns.near.shape).unflatten(1, rows.near.shape)
        return bias.permute(1, 4, 0, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


class _Axis:
    """
    One axis of a map of `size` cells, in tiles of queries.

    keys: (tiles, span) int64, the cells that the queries of a tile see.
    near: (tiles, tile, span) bool, whether a query sees a key.
    displacement: (tiles, tile, span) int64, key - query + kernel_size - 1.
    """

    def __init__(self, size: int, kernel_size: int, device: torch.device):
        self.tiles = -(-size // _TILE)
        self.padded = self.tiles * _TILE
        self.span = min(size, _TILE + kernel_size - 1)
        first = torch.arange(0, size, _TILE, device=device)
        query = first[:, None] + torch.arange(_TILE, device=device)
        corner = (first - kernel_size // 2).clamp(0, size - self.span)
        self.keys = corner[:, None] + torch.arange(self.span, device=device)
        start = (query - kernel_size // 2).clamp(0, size - kernel_size)[..., None]
        key = self.keys[:, None]
        self.near = (key >= start) & (key < start + kernel_size)
        self.displacement = key - query[..., None] + kernel_size - 1
