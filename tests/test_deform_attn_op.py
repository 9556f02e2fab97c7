"""Both entries of the operator, compiled and in PyTorch, against a dense sum over all cells."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2_ddetr.modeling import (
    MSDeformAttn,
    ms_deform_attn_fused,
)
from detectron2_ddetr.modeling.ops import ms_deform_attn_pytorch as pytorch_form

from .modeling_cases import ms_deform_attn_loop, randomise
from .op_cases import (
    IMPLEMENTATIONS,
    OPS,
    SEED,
    check_gradients,
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
    Hundreds of calls that were never made before: shapes, dtypes, strides, subsets of gradients.

    Samples keep away from the centres of cells, where derivatives jump.
    """
    with capsys.disabled():
        print(f"\nDDETR_TEST_SEED={SEED}", end=" ")
    monkeypatch.setattr(pytorch_form, "CHUNK", 3)
    for case in range(300):
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


UNREADABLE = [float("nan"), float("inf"), -float("inf"), 1e20, -1e20]


@both
@entries
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
@pytest.mark.parametrize("bad", UNREADABLE)
def test_unreadable_point(fused, implementation, dtype, axis, bad):
    """It reads nothing and has no gradient; around it all is as if it had no weight."""
    problem = make_problem(fused, numbers=4, dtype=dtype, images=1)
    points = problem.tensors[2 if fused else 1]
    chosen = (0, 2, 1, 3, axis) if fused else (0, 2, 1, 1, 1, axis)
    points[chosen] = bad
    leaves = problem.leaves()
    with using(implementation):
        output = problem.call(*leaves)
        output.sum().backward()
    check_gradients(problem, leaves, torch.ones_like(output), output)
    assert not leaves[2 if fused else 1].grad[chosen[:-1]].any()


@both
@pytest.mark.parametrize("number", range(4), ids=["cx", "cy", "w", "h"])
@pytest.mark.parametrize("bad", UNREADABLE)
def test_unreadable_reference(implementation, number, bad):
    """It takes the samples of one query on one level with it, and nothing else."""
    problem = make_problem(True, numbers=4, dtype=torch.float32)
    problem.tensors[1][1, 2, 0, number] = bad
    leaves = problem.leaves()
    with using(implementation):
        output = problem.call(*leaves)
        output.sum().backward()
    check_gradients(problem, leaves, torch.ones_like(output), output)
    assert not leaves[1].grad[1, 2, 0].any()


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


def footprint(problem):
    """(N, Q, M, S), whether any sample of the pair (query, head) reads the cell."""
    value = torch.ones_like(problem.tensors[0][..., :1])
    one = dataclasses.replace(problem, tensors=[value, *problem.tensors[1:]])

    def read(value):
        return one.expected(value, *one.tensors[1:])

    by_value = torch.autograd.functional.jacobian(read, value)[..., 0]  # (N, Q, M, N, S, M)
    return torch.einsum("nqmnsm->nqms", by_value) > 0


@both
@entries
@pytest.mark.parametrize("bad", UNREADABLE[:3])
def test_unread_value(fused, implementation, bad):
    """What no sample reads changes no bit of the result, whatever it is."""
    problem = make_problem(fused, [(4, 6), (2, 7)], dtype=torch.float32, queries=2)
    unread = ~footprint(problem).any(1).transpose(1, 2)  # (N, S, M)
    assert 0 < unread.sum() < unread.numel()
    results = []
    for filler in (0.0, bad):
        problem.tensors[0][unread] = filler
        with using(implementation):
            results.append(problem.run())
    for a, b in zip(*results):
        assert torch.equal(a, b)


@both
@entries
def test_nan_in_the_output_gradient(fused, implementation):
    """It reaches one channel of the cells that the query reads, and the query's own numbers."""
    problem = make_problem(fused, numbers=4)
    clean = torch.ones(2, 3, 2, 3, dtype=torch.float64)
    broken = clean.clone()
    broken[1, 2, 0, 1] = float("nan")
    with using(implementation):
        wanted = problem.run(clean.flatten(2))
        got = problem.run(broken.flatten(2))
    value, *rest = problem.tensors
    extent = torch.tensor([[w, h] for h, w in problem.sizes]).repeat_interleave(2, dim=0)
    pixels = problem.pixels(*rest)[1, 2, 0]  # (K, 2)
    inside = ((pixels > -1) & (pixels < extent)).all(-1)
    assert 0 < inside.sum() < len(inside)
    spoilt = [torch.zeros(x.shape, dtype=torch.bool) for x in problem.tensors]
    spoilt[0][1, :, 0, 1] = footprint(problem)[1, 2, 0]
    if fused:
        spoilt[1][1, 2] = inside.view(3, 2).any(1)[:, None]
        spoilt[2][1, 2, 0] = inside[:, None]
        spoilt[3][1, 2, 0] = True
    else:
        spoilt[1][1, 2, 0] = inside.view(3, 2, 1)
        spoilt[2][1, 2, 0] = inside.view(3, 2)
    for a, b, mask in zip(got[1:], wanted[1:], spoilt):
        assert torch.equal(a.isnan(), mask)
        assert_close(a[~mask], b[~mask])


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("numbers", [2, 4])
def test_coordinates_are_never_16_bit(implementation, dtype, numbers):
    """PEERS 7.12: on a wide map a 16-bit offset is added to a float32 reference in float32."""
    problem = make_problem(
        True, [(3, 1333)], 4, 1, 60, 2, 8, numbers, dtype, point_dtype=dtype, margin=0.001
    )
    if numbers == 2:  # offsets of a few cells
        problem.tensors[2].copy_(torch.rand_like(problem.tensors[2]) * 8 - 4)
    leaves = [x.detach() for x in problem.tensors]
    with using(implementation):
        output = problem.call(*leaves)
    check_gradients(problem, leaves, torch.ones_like(output), output)
    rounded = problem.to(torch.float64)
    rounded.tensors[1].copy_(rounded.tensors[1].to(dtype))
    wrong = (rounded.expected() - problem.to(torch.float64).expected()).abs().max()
    assert wrong > 10 * torch.finfo(dtype).eps  # the defect would be seen


@both
@entries
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bits_are_rounded_once(fused, implementation, dtype):
    """They are summed in float32: many small ones do not vanish next to a large one."""
    problem = make_problem(fused, [(1, 1)], 1, 1, 3000, 1, 1, dtype=dtype)
    if fused:
        problem.tensors[1].fill_(0.5)
        problem.tensors[2].fill_(0)
    else:
        problem.tensors[1].fill_(0.5)
    grad_output = torch.full((1, 3000, 1), 2.0**-10, dtype=dtype)
    grad_output[0, 0] = 1
    with using(implementation):
        by_value = problem.run(grad_output)[1]
    total = torch.tensor(1 + 2999 * 2.0**-10).to(dtype)
    assert_close(by_value.flatten(), total[None], rtol=0, atol=0)


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


@entries
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_operator_alone(fused, dtype):
    """The operator has no rule of its own: what is float32 stays so, bit by bit."""
    problem = make_problem(fused, dtype=torch.float32)
    plain = problem.run()
    with torch.autocast("cpu", dtype):
        cast = problem.run()
    for a, b in zip(plain, cast):
        assert torch.equal(a, b)


class ArgumentDtypes(TorchDispatchMode):
    """Writes down what dtypes the operator is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is OPS.ms_deform_attn_fused.default:
            self.seen.append([x.dtype for x in args if isinstance(x, torch.Tensor)])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numbers", [2, 4])
def test_module_under_autocast(dtype, numbers):
    """Projections are 16-bit and so is the result, references are not: the error is their own."""
    module = randomise(MSDeformAttn(16, 1, 2, 2), std=0.3)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 50, 16, generator=generator)
    # Each cell differs from the next, so that a rounded coordinate reads something else.
    src = torch.randn(1, 1333, 16, generator=generator)
    reference = torch.rand(1, 50, 1, numbers, generator=generator)
    reference[..., 2:] *= 0.01

    def run(reference):
        with torch.autocast("cpu", dtype), ArgumentDtypes() as dtypes:
            out = module(query, reference, src, [(1, 1333)])
        assert out.dtype == dtype
        assert dtypes.seen == [[dtype, torch.float32, dtype, dtype]]
        return (out.double() - exact).abs().max()

    exact = module.double()(query.double(), reference.double(), src.double(), [(1, 1333)])
    module.float()
    error, with_rounded = run(reference), run(reference.to(dtype).float())
    # 16 terms of each projection, rounded to `dtype` on the way in and out.
    assert error < 16 * torch.finfo(dtype).eps * exact.abs().max()
    assert with_rounded > 3 * error


#: What is wrong: how the arguments change, and what the message says.
FUSED_ERRORS = {
    "value": (lambda v, s, r, o, w, p: (v[0], s, r, o, w, p), r"\(N, S, M, D\).*\(30, 2, 3\)"),
    "value_dtype": (lambda v, s, r, o, w, p: (v.long(), s, r, o, w, p), "16, 32 or 64.*int64"),
    "positions": (lambda v, s, r, o, w, p: (v[:, 1:], s, r, o, w, p), "cover 30 .*value has 29"),
    "sharing": (
        lambda v, s, r, o, w, p: (v, s, r, o[:, :, :, 1:], w[..., 1:], None),
        "5 points.*3 levels",
    ),
    "reference": (
        lambda v, s, r, o, w, p: (v, s, r[..., :1], o, w, p),
        r"2 numbers.*4.*\(2, 3, 3, 1\)",
    ),
    "reference_dim": (lambda v, s, r, o, w, p: (v, s, r[0], o, w, p), r"R\).*\(3, 3, 2\)"),
    "points": (lambda v, s, r, o, w, p: (v, s, r, o, w, [3, 3]), r"each of 3 levels.*\[3, 3\]"),
    "no_point": (lambda v, s, r, o, w, p: (v, s, r, o, w, [3, 3, 0]), r"at least 1.*\[3, 3, 0\]"),
    "too_many": (
        lambda v, s, r, o, w, p: (v, s, r, o, w, [3, 2, 2]),
        r"\(2, 3, 2, 7\).*\(2, 3, 2, 6\)",
    ),
    "offsets": (
        lambda v, s, r, o, w, p: (v, s, r, o[..., :1], w, p),
        r"\(2, 3, 2, 6\).*\(2, 3, 2, 6, 1\)",
    ),
    "logits": (
        lambda v, s, r, o, w, p: (v, s, r, o, w[:, 1:], p),
        r"\(2, 3, 2, 6\).*\(2, 2, 2, 6\)",
    ),
    "heads": (
        lambda v, s, r, o, w, p: (v, s, r, o[:, :, 1:], w[:, :, 1:], p),
        r"\(2, 3, 2, 6\).*\(2, 3, 1, 6\)",
    ),
    "images": (lambda v, s, r, o, w, p: (v, s, r[:1], o, w, p), r"\(1, 3\).*\(2, 3\)"),
    "levels": (lambda v, s, r, o, w, p: (v, s, r[:, :, 1:], o, w, p), r"\(2, 2\).*\(2, 3\)"),
}


@pytest.mark.parametrize("error", FUSED_ERRORS)
def test_fused_errors(error):
    """What does not fit is refused with both sides named."""
    change, message = FUSED_ERRORS[error]
    problem = make_problem(True)
    value, *rest = problem.tensors
    arguments = (value, problem.sizes, *rest, problem.level_points)
    ms_deform_attn_fused(*arguments)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn_fused(*change(*arguments))


def test_value_dtype_error():
    """Integers are refused; what else can be wrong is in test_ms_deform_attn.py."""
    problem = make_problem()
    with pytest.raises(ValueError, match="16, 32 or 64 bits.*int64"):
        problem.call(problem.tensors[0].long(), *problem.tensors[1:])


@entries
def test_negative_sizes(fused):
    """Two of them would make a size that fits."""
    problem = make_problem(fused, [(2, 3), (1, 4)])
    problem.call()
    problem.sizes[0] = (-2, -3)
    with pytest.raises(ValueError, match=r"negative.*\(-2, -3\)"):
        problem.call()
