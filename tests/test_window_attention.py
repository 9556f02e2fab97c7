"""Window and neighbourhood attention, each beside its definition written out cell by cell."""

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling.neighborhood_attention import NeighborhoodAttention
from detectron2_ddetr.modeling.window_attention import WindowAttention

DIM, HEADS = 6, 2


def seeded(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module.double()


def image(height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, height, width, DIM, dtype=torch.float64, generator=generator)


def attended(q, keys, values, biases):
    """One query, (C,), among keys and values, (K, C), with biases (K, M)."""
    width, parts = DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        logits = keys[:, part] @ q[part] / width**0.5 + biases[:, head]
        parts.append(logits.softmax(0) @ values[:, part])
    return torch.cat(parts)


def padded(x, height, width):
    full = x.new_zeros(height, width, x.shape[2])
    full[: x.shape[0], : x.shape[1]] = x
    return full


def windows_written_out(module, x):
    """Of one map: cells see those whose window and, after the roll, side of the map they share."""
    size, shift = module.window_size, module.shift
    h, w, _ = x.shape
    rows, columns = -(-h // size) * size, -(-w // size) * size
    q, k, v = module.proj_qkv(padded(x, rows, columns)).chunk(3, dim=-1)
    table = module.relative_position_bias_table

    def place(i, n):
        """The window along one axis, whether wrapped around, and the cell in it."""
        rolled = (i - shift) % n
        return rolled // size, i < shift, rolled % size

    out = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            (window_y, side_y, y), (window_x, side_x, x_) = place(i, rows), place(j, columns)
            keys, biases = [], []
            for a in range(rows):
                for b in range(columns):
                    other_y, other_x = place(a, rows), place(b, columns)
                    if (other_y[:2], other_x[:2]) == ((window_y, side_y), (window_x, side_x)):
                        keys.append((a, b))
                        row = (y - other_y[2] + size - 1) * (2 * size - 1)
                        biases.append(table[row + x_ - other_x[2] + size - 1])
            a, b = zip(*keys)
            out[i, j] = attended(q[i, j], k[a, b], v[a, b], torch.stack(biases))
    return module.proj_out(out)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 4), (3, 3)])
@torch.no_grad()
def test_windows(size, shift):
    module, x = seeded(WindowAttention(DIM, HEADS, 3, shift=shift)), image(*size)
    expected = torch.stack([windows_written_out(module, y) for y in x])
    assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


def neighbors(cell, size, kernel):
    """Of the cells of an axis, the `kernel` nearest that are inside."""
    start = min(max(cell - kernel // 2, 0), size - kernel)
    return range(start, start + kernel)


def neighborhood_written_out(module, x):
    kernel = module.kernel_size
    h, w, _ = x.shape
    rows, columns = max(h, kernel), max(w, kernel)
    q, k, v = module.qkv(padded(x, rows, columns)).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            cells = [
                (a, b) for a in neighbors(i, rows, kernel) for b in neighbors(j, columns, kernel)
            ]
            a, b = zip(*cells)
            biases = [module.rpb[:, y - i + kernel - 1, x_ - j + kernel - 1] for y, x_ in cells]
            out[i, j] = attended(q[i, j], k[a, b], v[a, b], torch.stack(biases))
    return module.proj(out)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("size", [(5, 9), (7, 7), (17, 11), (2, 8), (16, 24)])
def test_neighborhood(size, kernel):
    """With gradients; on maps of less than a neighbourhood, of a tile, and of several."""
    module, x = seeded(NeighborhoodAttention(DIM, HEADS, kernel)), image(*size).requires_grad_()
    expected = torch.stack([neighborhood_written_out(module, y) for y in x])
    found = module(x)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)
    by = torch.cos(torch.arange(found.numel(), dtype=torch.float64)).view_as(found)
    inputs = [x, *module.parameters()]
    gradients = [torch.autograd.grad((y * by).sum(), inputs) for y in (found, expected)]
    assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 3, got 4"):
        NeighborhoodAttention(DIM, HEADS, 4)
    with pytest.raises(ValueError, match=r"shift \(3\) must be at least 0 and below 3"):
        WindowAttention(DIM, HEADS, 3, shift=3)
