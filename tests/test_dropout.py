"""Dropout beside PyTorch's own: the same numbers dropped, the same generator afterwards."""

import itertools
import math

import pytest
import torch
from torch import nn

from detectron2_ddetr.modeling.dropout import Dropout
from detectron2_ddetr.modeling.ops.bernoulli import bernoulli
from detectron2_ddetr.modeling.ops.scale_kept import scale_kept, scale_passed

from .op_cases import needs_kernels

OPS = torch.ops.detectron2_ddetr
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("drawn_before", [0, 1, 2, 3, 623, 624])
def test_draws(probability, drawn_before):
    """
    Those of Tensor.bernoulli_, from wherever in its 624 words the generator stands, across the ends
    of the words and of the blocks; new, and with half a pair of normal numbers waiting.
    """
    for count in (0, 1, 311, 312, 313, 1023, 1024, 1025, 5001):
        torch.manual_seed(count)
        if drawn_before:
            torch.randn(3)
            torch.rand(drawn_before)
        start = torch.get_rng_state()
        expected = torch.empty(count).bernoulli_(probability).bool()
        after = torch.get_rng_state()
        torch.set_rng_state(start)
        assert torch.equal(bernoulli((count,), probability), expected)
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("drawn_before", [0, 1, 311])
def test_draws_of_threads(drawn_before):
    """Of as many numbers as threads share, however many these are."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for count in (2**16 - 1, 2**16, 3 * 2**15 + 1, 300007):
                torch.manual_seed(count)
                torch.rand(drawn_before)
                start = torch.get_rng_state()
                expected = torch.empty(count).bernoulli_(0.7).bool()
                after = torch.get_rng_state()
                torch.set_rng_state(start)
                assert torch.equal(bernoulli((count,), 0.7), expected)
                assert torch.equal(torch.get_rng_state(), after)
    finally:
        torch.set_num_threads(before)


def with_what_is_special(count, dtype, random):
    x = torch.randn(count, generator=random).to(dtype)
    x[::7], x[2::13], x[3::11], x[5::13], x[6::17] = math.inf, -math.inf, math.nan, -0.0, 0.0
    return x


def check_in_place_and_beside(run, x, expected):
    result = torch.full_like(x, 3)
    assert run(x, result) is result
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    numbers = ~expected.isnan()
    assert torch.equal(result.signbit()[numbers], expected.signbit()[numbers])
    again = x.clone()
    run(again, again)
    torch.testing.assert_close(again, expected, rtol=0, atol=0, equal_nan=True)


LENGTHS = [0, 1, 15, 16, 17, 333, 70001]
SCALES = [1.0, 1.25, 1 / 0.9, 1e-3]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("of_relu", [False, True])
def test_scale_kept(dtype, of_relu):
    """To the bit what PyTorch's `where` and product give, of any length, in place and beside."""
    random = torch.Generator().manual_seed(2)
    for count, scale in itertools.product(LENGTHS, SCALES):
        x = with_what_is_special(count, dtype, random)
        kept = torch.rand(count, generator=random) < 0.6
        expected = torch.where(kept, x, 0)
        if of_relu:
            expected = torch.where(expected < 0, 0, expected)
        check_in_place_and_beside(
            lambda x, result: scale_kept(x, kept, scale, result, of_relu=of_relu),
            x,
            expected.mul(scale),
        )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_scale_passed(dtype):
    """The same of gradients; what a ReLU gave decides, and what is not a number hides nothing."""
    random = torch.Generator().manual_seed(2)
    for count, scale in itertools.product(LENGTHS, SCALES):
        grad, of = (with_what_is_special(count, dtype, random) for _ in range(2))
        of = of[torch.randperm(count, generator=random)]
        expected = torch.where(of <= 0, 0, grad.mul(scale))
        check_in_place_and_beside(
            lambda x, result: scale_passed(x, of, scale, result), grad, expected
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.75, 1.0])
def test_module(dtype, p):
    """Results and gradients are PyTorch's; in 16 bits it rounds the scale, and this the result."""
    results = []
    for module in (Dropout(p), nn.Dropout(p)):
        torch.manual_seed(3)
        x = torch.randn(2, 37, 19, dtype=dtype, requires_grad=True)
        y = module(x)
        y.backward(torch.linspace(-1, 1, y.numel()).to(dtype).view_as(y))
        results.append((y.detach(), x.grad, torch.rand(5)))
    rtol = 2 * torch.finfo(dtype).eps
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.75, 1.0])
def test_of_relu(dtype, p):
    """Results and gradients of PyTorch's two; where ReLU is at its corner, nothing passes."""
    results = []
    for run in (Dropout(p).of_relu_, lambda x: nn.Dropout(p)(x.relu_())):
        torch.manual_seed(3)
        x = torch.randn(37, 19, dtype=dtype)
        x[::5] = 0
        x.requires_grad_()
        y = run(x.clone())
        y.backward(torch.linspace(-1, 1, y.numel()).to(dtype).view_as(y))
        results.append((y.detach(), x.grad, torch.rand(5)))
    rtol = 2 * torch.finfo(dtype).eps
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)


def test_evaluation():
    """Nothing is dropped, and nothing drawn."""
    x, state = torch.randn(3, 5), torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_strides():
    """What does not lie in order is PyTorch's: its draws follow the memory."""
    results = []
    for module in (Dropout(0.5), nn.Dropout(0.5)):
        torch.manual_seed(3)
        results.append(module(torch.ones(6, 7).t()))
    assert torch.equal(*results)


@pytest.mark.parametrize("of_relu", [False, True])
def test_compiled(of_relu):
    """In one graph; a mask is drawn once for both passes, the mask of PyTorch's, and anew next."""
    torch._dynamo.reset()
    module = Dropout(0.25)
    run = torch.compile(
        module.of_relu_ if of_relu else module,
        fullgraph=True,
        dynamic=True,
        backend="aot_eager_decomp_partition",  # what need not be kept is computed again
    )
    for rows in (40, 50):
        x = torch.randn(rows, 60, requires_grad=True)
        results = []
        for call in (run, lambda x: nn.Dropout(0.25)(x.relu() if of_relu else x)):
            torch.manual_seed(rows)
            y = call(x)
            results.append((y, *torch.autograd.grad(y.sum(), x)))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)
        assert not torch.equal(run(x), results[0][0])


def test_memory():
    """A byte a number is kept for the backward pass, where PyTorch keeps a scale for each."""
    kept = []
    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        Dropout(0.5)(x)
    assert sum(t.nbytes for t in kept) == 1000
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        result = Dropout(0.5).of_relu_(x.clone())
    assert [t.data_ptr() for t in kept] == [result.data_ptr()]


@needs_kernels
def test_refused():
    """What is not a state of a CPU's generator is no reason to read beyond it."""
    state, result = torch.get_rng_state().view(torch.int64), torch.empty(3, dtype=torch.bool)
    for wrong in (state[:600], state.to(torch.int32), torch.zeros_like(state), state[::2]):
        with pytest.raises(RuntimeError, match="generator_state"):
            OPS.bernoulli_(wrong, result, 0.5)
    with pytest.raises(RuntimeError, match="result must be bool"):
        OPS.bernoulli_(state, torch.empty(3), 0.5)
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(RuntimeError, match="probability"):
            OPS.bernoulli_(state, result, probability)


@needs_kernels
def test_scale_kept_refuses():
    """Another type, another size, and what does not lie in order, which it would read past."""
    x, kept = torch.randn(6), torch.ones(6, dtype=torch.bool)
    for wrong, word in [
        ((x, kept.byte(), x), "bool"),
        ((x, kept, x.double()), "one type"),
        ((x, kept[:5], x), "one size"),
        ((x[:5], kept, x), "one size"),
        ((x, kept, torch.empty(12)[::2]), "contiguous"),
        ((x.int(), kept, x.int()), "floating point"),
    ]:
        values, mask, result = wrong
        with pytest.raises(RuntimeError, match=word):
            OPS.scale_kept(values, mask, 1.25, False, result)
    for wrong, word in [
        ((x, x.double(), x), "both operands"),
        ((x, x, x.double()), "one type"),
        ((x, x[:5], x), "one size"),
        ((x, x, x[:5]), "one size"),
        ((x, torch.empty(12)[::2], x), "contiguous"),
        ((x.int(), x.int(), x.int()), "floating point"),
    ]:
        grad, of, result = wrong
        with pytest.raises(RuntimeError, match=word):
            OPS.scale_passed(grad, of, 1.25, result)
