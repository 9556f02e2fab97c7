"""Both entries of the operator, compiled and in PyTorch, against a dense sum over all cells."""

import math

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling.ops import ms_deform_attn_pytorch as pytorch_form

from .modeling_cases import ms_deform_attn_loop
from .op_cases import (
    IMPLEMENTATIONS,
    SEED,
    check_problem,
    check_random_case,
    coordinate_dtype,
    make_problem,
    using,
)

both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
entries = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


@both
@entries
def test_random_cases(fused, implementation, capsys, monkeypatch):
    """
    Calls that were never made before: other shapes, dtypes, strides, subsets of gradients.

    Samples keep away from the centres of cells, where derivatives jump.
    """
    with capsys.disabled():
        print(f"\nDDETR_TEST_SEED={SEED}", end=" ")
    monkeypatch.setattr(pytorch_form, "CHUNK", 3)
    for case in range(150):
        with using(implementation):
            check_random_case(fused, case)


@entries
def test_reference(fused):
    """The reference itself against one cell at a time, in Python numbers."""
    problem = make_problem(fused, numbers=4)
    value, *rest = problem.tensors
    pixels = problem.pixels(*rest).view(2, 3, 2, 3, 2, 2)
    attention = (rest[2].softmax(-1) if fused else rest[1]).view(2, 3, 2, 3, 2)
    locations = torch.empty_like(pixels)
    for level, (height, width) in enumerate(problem.sizes):
        locations[:, :, :, level, :, 0] = (pixels[:, :, :, level, :, 0] + 0.5) / width
        locations[:, :, :, level, :, 1] = (pixels[:, :, :, level, :, 1] + 0.5) / height
    looped = ms_deform_attn_loop(value, problem.sizes, locations, attention)
    assert_close(problem.expected(), looped)


@both
@pytest.mark.parametrize(
    ("fused", "numbers"), [(False, 0), (True, 2), (True, 4)], ids=["plain", "points", "boxes"]
)
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 30, 32, 64, 71, 1025])
def test_gradcheck(implementation, fused, numbers, dim):
    """All inputs, at every width; points off the level included."""
    problem = make_problem(
        fused, [(3, 2), (1, 2)], [1, 2] if fused else 2, 1, 2, 2, dim, numbers, seed=dim
    )
    with using(implementation):
        assert torch.autograd.gradcheck(problem.call, problem.leaves(), fast_mode=dim > 3)


@both
@entries
def test_many_queries(fused, implementation):
    """More than are gathered at once, and no multiple of that number."""
    queries = 2 * pytorch_form.CHUNK + 5
    problem = make_problem(fused, [(3, 5), (2, 2)], 2, 2, queries, 2, 3)
    check_problem(problem, implementation)


@both
def test_no_points(implementation):
    """A sum of nothing is zero and moves nothing."""
    with using(implementation):
        output, *gradients = make_problem(points=0).run()
    assert output.shape == (2, 3, 2 * 3)
    assert not output.any() and not any(x.any() for x in gradients)


def one_sample(fused, axis, pixel, dtype):
    """One sample on a map of 4 cells along `axis` and 2 along the other, exactly at `pixel`."""
    width, height = (4, 2) if axis == 0 else (2, 4)
    at = torch.tensor([pixel, 0.25] if axis == 0 else [0.25, pixel], dtype=torch.float64)
    extent = torch.tensor([width, height])
    problem = make_problem(fused, [(height, width)], 1, 1, 1, 1, 1, dtype=dtype)
    if fused:
        problem.tensors[1].fill_(0.5)
        problem.tensors[2].copy_(at - (extent / 2 - 0.5))
    else:
        problem.tensors[1].copy_((at + 0.5) / extent)
    return problem


BORDER = [-2, -1, -0.5, 0, 3, 3.5, 4, 5]  # in cells, of a map with 4


@both
@entries
@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beyond", [-1, 0, 1], ids=["before", "at", "behind"])
@pytest.mark.parametrize("pixel", BORDER)
def test_border(fused, implementation, axis, dtype, beyond, pixel):
    """A sample counts when -1 < x < W; at a cell's centre the slope is that to its right."""
    point_dtype = coordinate_dtype(dtype)
    pixel = pixel + beyond * 16 * torch.finfo(point_dtype).eps
    problem = one_sample(fused, axis, pixel, dtype)
    with using(implementation):
        output, by_value, *gradients = problem.run()
    by_points = gradients[1 if fused else 0].flatten()
    exact = problem.to(torch.float64)
    leaves = exact.leaves()
    expected = exact.expected(*leaves)
    eps = torch.finfo(dtype).eps
    assert_close(output.double(), expected.detach(), rtol=eps, atol=16 * eps)
    wanted = torch.autograd.grad(expected, leaves[0])[0]
    assert_close(by_value.double(), wanted, rtol=eps, atol=0)  # next to the border it is tiny
    if not -1 < pixel < 4:
        assert not output.any() and not by_value.any()
        assert not any(x.any() for x in gradients)
        return
    cells = problem.tensors[0].double().view((2, 4) if axis == 0 else (4, 2))
    line = cells.T if axis == 0 else cells
    line = torch.nn.functional.pad(0.75 * line[:, 0] + 0.25 * line[:, 1], (1, 1))
    left = math.floor(pixel) + 1
    slope = (line[left + 1] - line[left]) * (1 if fused else 4)
    assert_close(by_points[axis].double(), slope, rtol=0, atol=64 * torch.finfo(point_dtype).eps)


@both
@entries
def test_all_outside(fused, implementation):
    """A query that looks past every level sees exactly nothing, and moves nothing."""
    problem = make_problem(fused, dtype=torch.float32)
    problem.tensors[2 if fused else 1][1, 2] = 50.0
    grad_output = torch.zeros(2, 3, 6)
    grad_output[1, 2] = 1
    with using(implementation):
        output, *gradients = problem.run(grad_output)
    assert not output[1, 2].any() and output[1, :2].any()
    assert not any(x.any() for x in gradients)


@both
@entries
def test_second_derivative(fused, implementation):
    """It is refused, and the message says what has one."""
    problem = make_problem(fused)
    leaves = problem.leaves()
    with using(implementation):
        gradients = torch.autograd.grad(problem.call(*leaves).sum(), leaves, create_graph=True)
        with pytest.raises(NotImplementedError, match="ms_deform_attn_grid_sample"):
            gradients[0].sum().backward()


@entries
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap(fused):
    """`torch.func.vmap` falls back to one call after the other."""
    problem = make_problem(fused)
    value, *rest = problem.tensors
    values = torch.stack((value, 2 * value, value - 1))
    out = torch.func.vmap(lambda value: problem.call(value, *rest))(values)
    assert_close(out, torch.stack([problem.expected(value, *rest) for value in values]))
