"""
Multi-scale deformable attention in PyTorch alone, twice.

:func:`gather_forward` and :func:`gather_backward` stand in where no kernel is compiled for a
device. :func:`ms_deform_attn_grid_sample` is the plain form: the reference of the tests, and what
an exporter writes that knows `grid_sample` but no custom operator.

All functions here but the last take samples level after level: K is the sum of `level_points`, P of
each level, and `sizes` are (H_l, W_l) of each level.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = Sequence[tuple[int, int]]

#: Queries of one step of the gathering form: what it makes on the way stays in the cache.
CHUNK = 1024


def locations_from_offsets(
    reference_points: Tensor, sampling_offsets: Tensor, sizes: Sizes, level_points: Sequence[int]
) -> Tensor:
    """
    Where samples lie, as a fraction of their padded level.

    Offsets are cells of their level around a point (Eq. (3)), or fractions of half a box
    divided by P around a box (Sec. A.4; the division is from the official code).

    Args:
        reference_points: (N, Q, L, 2), (x, y), or (N, Q, L, 4), (cx, cy, w, h), in [0, 1].
        sampling_offsets: (N, Q, M, K, 2), (x, y).

    Returns:
        (N, Q, M, K, 2), (x, y), in the dtype of the references: a coordinate must not be rounded
        to 16 bits, even when the offsets are.
    """
    step, base = step_and_base(reference_points, sizes, level_points)
    return base + sampling_offsets.to(reference_points.dtype) * step


def step_and_base(references: Tensor, sizes: Sizes, level_points: Sequence[int]):
    """Locations are offsets * step + base; both (N, Q, 1, K, 2)."""
    steps, bases = [], []
    for level, ((height, width), points) in enumerate(zip(sizes, level_points)):
        reference = references[:, :, None, level, None].expand(-1, -1, -1, points, -1)
        bases.append(reference[..., :2])
        if references.shape[-1] == 4:
            steps.append(reference[..., 2:] * (0.5 / points))
        else:
            ones = torch.ones_like(bases[-1][..., 0])
            steps.append(torch.stack((ones / width, ones / height), dim=-1))
    return torch.cat(steps, dim=3), torch.cat(bases, dim=3)


def gather_forward(
    value: Tensor, sizes: Sizes, level_points: Sequence[int], locations: Tensor, attention: Tensor
) -> Tensor:
    """
    The operator as a weighted sum of gathered rows, which is what `embedding_bag` computes.

    Args:
        value: (N, S, M, D).
        locations: (N, Q, M, K, 2), (x, y), float64 for float64 values, otherwise float32.
        attention: (N, Q, M, K), of the same dtype.

    Returns:
        (N, Q, M * D) in the dtype of `value`.
    """
    output = value.new_zeros(value.shape[0], locations.shape[1], value.shape[2:].numel())
    if attention.numel() == 0 or value.numel() == 0:
        return output
    rows = _rows(value, locations.dtype)
    for image, queries in _chunks(locations):
        cells = _Cells(value, sizes, level_points, image, locations[image, queries])
        weight = cells.corner_weights() * attention[image, queries, ..., None]
        index = cells.index.flatten(0, 1).flatten(1)  # (q * M, 4 K)
        summed = F.embedding_bag(index, rows, per_sample_weights=weight.view_as(index), mode="sum")
        output[image, queries] = summed.view(-1, output.shape[2]).to(value.dtype)
    return output


def gather_backward(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sizes,
    level_points: Sequence[int],
    locations: Tensor,
    attention: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Gradients of :func:`gather_forward` by value, locations and attention, each as its input.

    With g the gradient of the output and v_k the four cells of a sample, the last two follow from
    the dot products <g, v_k>. The first is that of `grid_sample`, which scatters without sorting.
    """
    if attention.numel() == 0 or value.numel() == 0:
        return tuple(x.new_zeros(x.shape) for x in (value, locations, attention))
    num_images, num_queries, num_heads = attention.shape[:3]
    dtype = locations.dtype
    grad_output = grad_output.to(dtype).reshape(num_images, num_queries, num_heads, -1)
    rows = _rows(value, dtype)
    # Contiguous, as compilers were told.
    grad_locations = locations.new_empty(locations.shape)
    grad_attention = attention.new_empty(attention.shape)
    for image, queries in _chunks(locations):
        cells = _Cells(value, sizes, level_points, image, locations[image, queries])
        dots = _dot_products(
            rows, cells.index.flatten(0, 1).flatten(1), grad_output[image, queries].flatten(0, 1)
        )
        dots = dots.view(cells.index.shape).masked_fill(~cells.inside[..., None], 0)
        grad_attention[image, queries] = (dots * cells.corner_weights()).sum(-1)
        upper_left, upper_right, lower_left, lower_right = dots.unbind(-1)
        fx, fy = cells.fraction.unbind(-1)
        along_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, fy)
        along_y = torch.lerp(lower_left - upper_left, lower_right - upper_right, fx)
        by_pixel = torch.stack((along_x, along_y), dim=-1) * attention[image, queries, ..., None]
        by_pixel = by_pixel.masked_fill(~cells.inside[..., None], 0)
        grad_locations[image, queries] = by_pixel * cells.size

    grid = _grid(locations)
    scaled = (
        attention.permute(0, 2, 3, 1)[:, :, None] * grad_output.permute(0, 2, 3, 1)[:, :, :, None]
    )
    scaled = scaled.flatten(0, 1)  # (N * M, D, K, Q)
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (N * M, D, S)
    areas = [height * width for height, width in sizes]
    levels = zip(
        maps.split(areas, dim=-1),
        sizes,
        grid.split(level_points, dim=1),
        scaled.split(level_points, dim=2),
    )
    grad_maps = [
        torch.ops.aten.grid_sampler_2d_backward(
            level_scaled, level_map.unflatten(-1, size), level_grid, 0, 0, False, [True, False]
        )[0].flatten(2)
        for level_map, size, level_grid, level_scaled in levels
    ]
    grad_value = torch.cat(grad_maps, dim=-1).unflatten(0, (num_images, num_heads))
    grad_value = grad_value.permute(0, 3, 1, 2).to(value.dtype).contiguous()
    return grad_value, grad_locations, grad_attention


def _chunks(locations: Tensor) -> Iterator[tuple[int, slice]]:
    for image in range(locations.shape[0]):
        for first in range(0, locations.shape[1], CHUNK):
            yield image, slice(first, first + CHUNK)


def _rows(value: Tensor, dtype: torch.dtype) -> Tensor:
    """(N * S * M + 1, D): what can be read, and a row of zeros for what lies outside."""
    rows = value.reshape(-1, value.shape[3]).to(dtype)
    return torch.cat((rows, rows.new_zeros(1, rows.shape[1])))


class _Cells:
    """
    The four cells around each sample of some queries of one image.

    Attributes:
        index: (q, M, K, 4) rows; upper left, upper right, lower left, lower right.
        fraction: (q, M, K, 2), (x, y) from the centre of the upper left cell, 0 outside.
        inside: (q, M, K), whether the sample counts. A location that is not finite does not.
        size: (K, 2), (W, H) of the level of each sample.
    """

    def __init__(self, value: Tensor, sizes: Sizes, level_points, image: int, locations: Tensor):
        num_positions, num_heads = value.shape[1:3]
        starts = [0]
        for height, width in sizes:
            starts.append(starts[-1] + height * width)
        table = [
            (width, height, start)
            for (height, width), start, points in zip(sizes, starts, level_points)
            for _ in range(points)
        ]
        width, height, start = torch.tensor(table, device=value.device).view(-1, 3).unbind(1)
        self.size = torch.stack((width, height), dim=-1).to(locations.dtype)
        pixel = locations * self.size - 0.5
        self.inside = ((pixel > -1) & (pixel < self.size)).all(-1)
        pixel = torch.where(self.inside[..., None], pixel, 0)
        corner = pixel.floor()
        self.fraction = pixel - corner
        last_row = value.shape[:3].numel()
        dtype = torch.int32 if last_row < 2**31 - 1 else torch.int64
        x, y = corner.to(dtype).unbind(-1)
        left, right = self.inside & (x >= 0), self.inside & (x < width - 1)
        upper, lower = y >= 0, y < height - 1
        head = torch.arange(num_heads, device=value.device, dtype=dtype)[:, None]
        start = (image * num_positions + start).to(dtype)
        row = (start + y * width.to(dtype) + x) * num_heads + head
        below = row + width.to(dtype) * num_heads
        self.index = torch.stack(
            (
                torch.where(left & upper, row, last_row),
                torch.where(right & upper, row + num_heads, last_row),
                torch.where(left & lower, below, last_row),
                torch.where(right & lower, below + num_heads, last_row),
            ),
            dim=-1,
        )

    def corner_weights(self) -> Tensor:
        """(q, M, K, 4), bilinear."""
        x, y = self.fraction.unbind(-1)
        return torch.stack(((1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y), dim=-1)


def _dot_products(rows: Tensor, index: Tensor, grad: Tensor) -> Tensor:
    """<grad[i], rows[index[i, j]]>: (R, D), (I, J), (I, D) -> (I, J)."""
    ends = torch.arange(
        0, index.numel() + 1, index.shape[1], device=index.device, dtype=index.dtype
    )
    bags = torch.arange(index.shape[0], device=index.device, dtype=index.dtype)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, rows, index.flatten(), ends[:-1], bags.repeat_interleave(index.shape[1]), 0
    ).view_as(index)


def _grid(locations: Tensor) -> Tensor:
    """(N, Q, M, K, 2) -> (N * M, K, Q, 2) in [-1, 1] of the level, as `grid_sample` wants it."""
    grid = (2 * locations - 1).clamp(-3, 3).nan_to_num(nan=-3.0)  # beyond 2 is outside
    return grid.permute(0, 2, 3, 1, 4).flatten(0, 1)


def grid_sample_forward(
    value: Tensor, sizes: Sizes, level_points: Sequence[int], locations: Tensor, attention: Tensor
) -> Tensor:
    """As :func:`gather_forward`, by one differentiable `grid_sample` per level."""
    num_images, _, num_heads, channels = value.shape
    weight = attention.permute(0, 2, 3, 1).flatten(0, 1)[:, None]  # (N * M, 1, K, Q)
    maps = value.to(locations.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (N * M, D, S)
    levels = zip(
        maps.split([height * width for height, width in sizes], dim=-1),
        sizes,
        _grid(locations).split(level_points, dim=1),
        weight.split(level_points, dim=2),
    )
    # Level by level, so that the samples of one level only are in memory.
    output = maps.new_zeros(num_images * num_heads, channels, locations.shape[1])
    for level_map, size, level_grid, level_weight in levels:
        sampled = F.grid_sample(level_map.unflatten(-1, size), level_grid, align_corners=False)
        output = output + (sampled * level_weight).sum(2)  # over P: (N * M, D, Q)
    output = output.view(num_images, num_heads * channels, -1).transpose(1, 2)
    return output.to(value.dtype)


def ms_deform_attn_grid_sample(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """
    :func:`.ms_deform_attn` out of ordinary functions: same arguments, same result.

    It differs where a cell that is read with weight zero, at a location on a cell's centre, holds
    no finite number.
    """
    # Locations decide: 16-bit values are read in float32.
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    return grid_sample_forward(
        value,
        [(height, width) for height, width in spatial_shapes.tolist()],
        [sampling_locations.shape[4]] * sampling_locations.shape[3],
        sampling_locations.flatten(3, 4).to(dtype),
        attention_weights.flatten(3, 4).to(dtype),
    )
