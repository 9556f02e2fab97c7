"""NaN, infinity and huge numbers in what the operator is given: who reads them, what they spoil."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from .op_cases import check_gradients, make_problem, using
from .test_deform_attn_op import both, entries

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
@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unreadable_logit(implementation, read, bad):
    """It makes what its query and head read not a number, and changes no bit of the others."""
    problem = make_problem(True, numbers=2, dtype=torch.float32)
    value, _, offsets, logits = problem.tensors
    offsets[1, 2, 0] = 0.0 if read else 1e6
    with using(implementation):
        before = problem.call(*problem.tensors).unflatten(2, value.shape[2:])
        logits[1, 2, 0, 3] = bad
        after = problem.call(*problem.tensors).unflatten(2, value.shape[2:])
    spoilt = torch.zeros(after.shape, dtype=torch.bool)
    # PyTorch's function multiplies what is outside by zero, the kernels do not read it.
    spoilt[1, 2, 0] = read or implementation == "pytorch"
    assert torch.equal(after.isnan(), spoilt)
    assert torch.equal(after[~spoilt], before[~spoilt])
