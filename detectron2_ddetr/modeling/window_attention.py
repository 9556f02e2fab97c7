"""Attention within windows, and within windows that are shifted against those."""

import torch
from torch import Tensor, nn

from .channels_last import padded
from .linear import Linear

#: What Swin adds to the logits of cells that are no neighbours.
_APART = -100.0


class WindowAttention(nn.Module):
    """
    Multi-head attention among the cells of each window of a map
    (https://arxiv.org/abs/2103.14030), with a learned bias for each displacement.

    Maps are padded with zeros to whole windows; the padding is not masked, as in the authors' code
    for detection.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window_size: int,
        *,
        shift: int = 0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        """
        Args:
            shift: cells by which the windows lie further down and right than those without.
        """
        super().__init__()
        if not 0 <= shift < window_size:
            raise ValueError(f"shift ({shift}) must be at least 0 and below {window_size}")
        self.heads, self.window_size, self.shift = heads, window_size, shift
        self.proj_qkv = Linear(dim, 3 * dim)
        self.proj_out = Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        side = 2 * window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side * side, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.register_buffer("displacement", _displacements(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        n, height, width, channels = x.shape
        size = self.window_size
        down, right = -(-height // size), -(-width // size)
        x = padded(x, down * size, right * size)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = x.reshape(n, down, size, right, size, channels).transpose(2, 3)
        qkv = self.proj_qkv(windows.reshape(n * down * right, size * size, channels))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, M, T, D)
        weights = self._logits(q, k, down, right).softmax(dim=-1)
        x = (self.attn_drop(weights) @ v).transpose(1, 2).flatten(2)
        x = self.proj_drop(self.proj_out(x)).reshape(n, down, right, size, size, channels)
        x = x.transpose(2, 3).reshape(n, down * size, right * size, channels)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _logits(self, q: Tensor, k: Tensor, down: int, right: int) -> Tensor:
        """(B, M, T, T), of B = N * `down` * `right` windows of T cells."""
        bias = self.relative_position_bias_table[self.displacement].permute(2, 0, 1)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if self.shift:
            apart = self._apart(down, right, q.device)[:, None]  # (windows, 1, T, T)
            bias = bias + _APART * apart
        windows = bias.shape[0] if self.shift else 1
        logits.unflatten(0, (-1, windows)).add_(bias)
        return logits

    def _apart(self, down: int, right: int, device: torch.device) -> Tensor:
        """(`down` * `right`, T, T) bool: which cells only the roll has brought together."""
        size = self.window_size

        def strips(windows: int) -> Tensor:
            cell = torch.arange(windows * size, device=device)
            last = (windows - 1) * size
            return ((cell >= last).int() + (cell >= last + size - self.shift)).view(windows, size)

        rows, columns = strips(down), strips(right)
        region = 3 * rows[:, None, :, None] + columns[None, :, None, :]
        region = region.reshape(down * right, size * size)
        return region[:, :, None] != region[:, None, :]


def _displacements(size: int) -> Tensor:
    """(T, T) int64, where in the table of biases that of (query, key) is, T = `size`^2."""
    cell = torch.arange(size)
    apart = cell[:, None] - cell + size - 1  # (size, size)
    index = apart[:, None, :, None] * (2 * size - 1) + apart[None, :, None, :]
    return index.reshape(size * size, size * size)
