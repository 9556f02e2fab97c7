"""Bilinear interpolation as sums of few rows, the kernel max(0, 1 - |a - b|) of each axis."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def cells(normalised: Tensor, size: int) -> Tensor:
    """Where -1 is the first of `size` cells and 1 the last: their index, with fractions."""
    return (at_least_float32(normalised) + 1) / 2 * (size - 1)


def taps(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """
    The two neighbours of each fractional index along one axis.

    Args:
        index: (...), cells; may lie outside of 0 .. `size` - 1, where there are zeros.

    Returns:
        (..., 2) int64 within the axis, and their weights, (..., 2) in the dtype of `index`.
    """
    low = index.floor()
    fraction = index - low
    neighbours = torch.stack((low, low + 1), dim=-1)
    inside = (neighbours >= 0) & (neighbours < size)
    weights = torch.stack((1 - fraction, fraction), dim=-1) * inside
    return neighbours.clamp(0, size - 1).long(), weights


def interpolation(index: Tensor, size: int) -> Tensor:
    """:func:`taps` as a matrix: (...) -> (..., `size`), how much each index reads of each cell."""
    neighbours, weights = taps(index, size)
    return weights.new_zeros(*index.shape, size).scatter_add_(-1, neighbours, weights)


def sum_of_rows(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """
    Args:
        rows: (R, C).
        index, weights: (..., T), which rows and how much of each.

    Returns:
        (..., C), sum_t weights[..., t] * rows[index[..., t]].
    """
    *shape, number = index.shape
    summed = F.embedding_bag(
        index.reshape(-1, number),
        rows,
        mode="sum",
        per_sample_weights=weights.reshape(-1, number).to(rows.dtype),
    )
    return summed.reshape(*shape, rows.shape[1])


def _gathered(
    rows: Tensor, index: Tensor, offsets: Tensor, _scale: bool, _mode: int, _sparse: bool,
    weights: Tensor, *_: object
) -> tuple[Tensor, ...]:  # fmt: skip
    """`embedding_bag` of :func:`sum_of_rows`, whose bags are of one size."""
    number = index.shape[0] // offsets.shape[0]
    found = (rows[index] * weights[:, None]).unflatten(0, (offsets.shape[0], number)).sum(1)
    return found, offsets, offsets, offsets  # of which the first alone is read


#: For `program.run_decompositions`, where a program goes to ONNX: its `embedding_bag` would be a
#: loop over bags, of which a large image has millions.
GATHER_DECOMPOSITIONS = {torch.ops.aten.embedding_bag.padding_idx: _gathered}


def sample_rows(maps: Tensor, positions: Tensor) -> Tensor:
    """
    Reads maps at points, zero outside; torch's `grid_sample` with `align_corners`.

    Args:
        maps: (N, H, W, G, C), G groups of channels.
        positions: (N, G, K, 2), (y, x), -1 and 1 at the centres of the outer cells.

    Returns:
        (N, G, K, C).
    """
    n, height, width, groups, channels = maps.shape
    rows, row_weights = taps(cells(positions[..., 0], height), height)
    columns, column_weights = taps(cells(positions[..., 1], width), width)
    image = torch.arange(n, device=maps.device).view(n, 1, 1, 1, 1)
    group = torch.arange(groups, device=maps.device).view(groups, 1, 1, 1)
    index = (image * height + rows[..., :, None]) * width + columns[..., None, :]
    index = (index * groups + group).flatten(-2)  # (N, G, K, 4)
    weights = (row_weights[..., :, None] * column_weights[..., None, :]).flatten(-2)
    return sum_of_rows(at_least_float32(maps).reshape(-1, channels), index, weights)


def sample_table(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """
    Reads a table on a grid of its own for each of K keys, zero outside.

    Args:
        table: (G, M, A, B), M tables for each group.
        rows: fractional indices along A, (N, G, K, H).
        columns: those along B, (N, G, K, W).

    Returns:
        (N, G, K, H, M, W), at (rows[..., i], columns[..., j]).
    """
    groups, tables, a, b = table.shape
    n, _, keys, height = rows.shape
    width = columns.shape[3]
    # Along columns first: each (key, column) is a weighted sum of two columns of the table.
    index, weights = taps(columns, b)
    index = index + b * torch.arange(groups, device=table.device).view(groups, 1, 1, 1)
    lines = table.permute(0, 3, 2, 1).reshape(groups * b, a * tables)
    lines = sum_of_rows(lines, index, weights)
    lines = lines.reshape(n * groups * keys, width, a, tables).permute(0, 2, 3, 1)
    index, weights = taps(rows, a)
    key = torch.arange(n * groups * keys, device=table.device).view(n, groups, keys, 1, 1)
    found = sum_of_rows(lines.reshape(-1, tables * width), index + a * key, weights)
    return found.reshape(n, groups, keys, height, tables, width)
