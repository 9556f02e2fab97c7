"""Dropout, sum and norm in one pass beside the same in three, and beside the formula."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling.add_norm import AddNorm, add_and_norm
from detectron2_ddetr.modeling.dropout import Dropout
from detectron2_ddetr.modeling.ops.bernoulli import bernoulli

from .op_cases import needs_kernels

OPS = torch.ops.detectron2_ddetr


def made(shape=(2, 37, 19), dtype=torch.float32, p=0.2):
    """x, update, dropout and norm."""
    torch.manual_seed(0)
    x, update = (torch.randn(shape, dtype=dtype).mul(3).add(2).requires_grad_() for _ in range(2))
    norm = AddNorm(shape[-1]).to(dtype)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return x, update, Dropout(p), norm


def in_three(x, update, dropout, norm):
    return norm(x + dropout(update))


def formula(x, update, kept, p, norm):
    total = x + update * kept / (1 - p)
    centred = total - total.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return centred * scale * norm.weight + norm.bias


def with_gradients(call, x, update, dropout, norm):
    torch.manual_seed(1)
    result = call(x, update, dropout, norm)
    weights = torch.linspace(-1, 1, result.numel()).view_as(result).to(result)
    leaves = [x, update, *norm.parameters()]
    return [result, *torch.autograd.grad((result * weights).sum(), leaves), torch.rand(3)]


@pytest.mark.parametrize("shape", [(1, 1), (5,), (2, 37, 19), (3, 150, 32), (300, 256), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_results_and_gradients(shape, dtype, p):
    """Of widths that are no whole vectors, and of more rows than one sum of the gradients has."""
    given = made(shape, dtype, p)
    atol = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]
    for training in (True, False):
        given[2].train(training)
        ours, theirs = (with_gradients(call, *given) for call in (add_and_norm, in_three))
        for a, b in zip(ours, theirs):
            assert_close(a, b, rtol=1e-5, atol=atol)
        with torch.no_grad():
            torch.manual_seed(1)
            assert_close(add_and_norm(*given), ours[0].detach(), rtol=0, atol=0)


def test_formula():
    """In float64, with the mask that PyTorch's generator draws."""
    given = made(dtype=torch.float64)
    found = with_gradients(add_and_norm, *given)
    torch.manual_seed(1)
    kept = bernoulli(given[0].shape, 0.8)
    assert 0.7 < kept.double().mean() < 0.9
    x, update, dropout, norm = given
    call = lambda x, update, dropout, norm: formula(x, update, kept, 0.2, norm)  # noqa: E731
    for a, b in zip(found[:-1], with_gradients(call, x, update, dropout, norm)):
        assert_close(a, b, rtol=1e-10, atol=1e-11)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("width", [5, 19, 64])
def test_16_bits(dtype, p, width):
    """
    As of mixed precision, beside the formula in float64: the result is rounded once, gradients are
    within what rounds them and the numbers that are kept for them; those of the norm have 32 bits.
    """
    x, update, dropout, norm = made((2, 157, width), p=p)
    x, update = (t.detach().to(dtype).requires_grad_() for t in (x, update))
    found = with_gradients(add_and_norm, x, update, dropout, norm)[:-1]
    assert [t.dtype for t in found] == [dtype] * 3 + [torch.float32] * 2
    torch.manual_seed(1)
    kept = bernoulli(x.shape, 1 - p).double() if p else torch.ones(x.shape, dtype=torch.float64)
    leaves = [t.detach().double().requires_grad_() for t in (x, update, *norm.parameters())]
    total = leaves[0] + leaves[1] * kept / (1 - p)
    wanted = nn.functional.layer_norm(total, (width,), *leaves[2:], norm.eps)
    weights = torch.linspace(-1, 1, wanted.numel()).view_as(wanted).to(dtype).double()
    wanted = [wanted, *torch.autograd.grad((wanted * weights).sum(), leaves)]
    eps = torch.finfo(dtype).eps
    assert_close(found[0].double(), wanted[0], rtol=0.51 * eps, atol=1e-5)
    for a, b in zip(found[1:], wanted[1:]):
        assert (a.double() - b).norm() < 2 * eps * b.norm()


@needs_kernels
def test_thread_counts():
    """Whatever the number of threads, every bit is the same."""
    given = made((3, 400, 40))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(with_gradients(add_and_norm, *given))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_large_numbers_and_equal_ones():
    """A mean far from zero does not hide what differs; rows of one number are the bias."""
    x, update, dropout, norm = made((4, 64), p=0.0)
    far = torch.randn(4, 64, dtype=torch.float64) + 4096
    result = add_and_norm(far.float(), torch.zeros(4, 64), dropout, norm)
    expected = in_three(far, torch.zeros(4, 64), dropout, copy.deepcopy(norm).double())
    assert_close(result, expected.float(), rtol=0, atol=4e-3)  # 4096 in float32 is that coarse
    same = torch.full((4, 64), 7.25)
    assert_close(add_and_norm(same, same, dropout, norm), norm.bias.expand(4, 64))


def test_what_is_no_number():
    """A row with NaN is NaN and no other; what is dropped is not read."""
    x, update, _, norm = made((3, 40), p=0.0)
    with torch.no_grad():
        x[1, 5] = torch.nan
        result = add_and_norm(x, update, Dropout(0.0), norm)
    assert result[1].isnan().all() and result[::2].isfinite().all()
    dropout = Dropout(0.5).train()
    torch.manual_seed(1)
    kept = bernoulli(update.shape, 0.5)
    with torch.no_grad():
        update.masked_fill_(~kept, torch.inf)
        torch.manual_seed(1)
        assert add_and_norm(x, update, dropout, norm)[::2].isfinite().all()


def test_squares_that_overflow():
    """NaN, as PyTorch's norm gives, and not the bias: it would hide that training has diverged."""
    x, update, dropout, norm = made((2, 16), p=0.0)
    x = torch.cat((x[:1], torch.full((1, 16), 1e30).where(torch.arange(16) % 2 == 0, -1e30)))
    result = add_and_norm(x, update, dropout, norm)
    assert result[0].isfinite().all() and result[1].isnan().all()
    assert in_three(x, update, dropout, norm)[1].isnan().all()


@needs_kernels
def test_one_pass(monkeypatch):
    """Where it may be, also of a norm with hooks; else, of other types or strides, as ever."""
    calls = []
    real = OPS.add_norm
    monkeypatch.setattr(OPS, "add_norm", lambda *args: calls.append(args) or real(*args))
    x, update, dropout, norm = made()

    def passes(*given):
        calls.clear()
        assert_close(add_and_norm(*given).float(), in_three(*given).float(), rtol=1e-5, atol=1e-4)
        return len(calls)

    dropout.eval()
    assert passes(x, update, dropout, norm) == 1
    assert passes(x, update.bfloat16(), dropout, norm) == 0
    assert passes(x.bfloat16(), update, dropout, norm) == 0
    assert passes(x.bfloat16(), update.bfloat16(), dropout, copy.deepcopy(norm).bfloat16()) == 0
    assert passes(x.double(), update.double(), dropout, copy.deepcopy(norm).double()) == 1
    assert passes(x, update[:1], dropout, norm) == 0
    assert passes(x, update.transpose(0, 1).contiguous().transpose(0, 1), dropout, norm) == 0
    assert passes(x, update, nn.Identity(), norm) == 0
    assert passes(x, update, dropout, nn.Identity()) == 0
    assert passes(x, update, dropout, nn.LayerNorm(19)) == 0
    assert passes(x, update, dropout, AddNorm(19, elementwise_affine=False)) == 0
    assert passes(x, update, dropout, AddNorm((37, 19))) == 0
    seen = []
    norm.register_forward_hook(lambda module, given, result: seen.append(result))
    assert passes(x, update, dropout, norm) == 0 and len(seen) == 2
    dropout.register_forward_hook(lambda module, given, result: seen.append(result))
    assert passes(x, update, dropout, norm) == 0 and len(seen) == 6


def test_hooks_of_the_norm_are_given_the_sum():
    norm, (x, update), seen = AddNorm(19), torch.randn(2, 37, 19), []
    norm.register_forward_pre_hook(lambda module, given: seen.append(given) or given)
    result = add_and_norm(x, update, Dropout(0.0), norm)
    ((given,),) = seen
    assert torch.equal(given, x + update) and torch.equal(result, F.layer_norm(given, (19,)))


@needs_kernels
def test_refuses():
    """What it would read past, or take for other numbers."""
    x, w, kept = torch.randn(4, 6), torch.randn(6), torch.ones(4, 6, dtype=torch.bool)
    for args, word in [
        ((x.int(), x.int(), None, 1, w, w, 1e-5, True), "16, 32 or 64"),
        ((x.half(), x.half(), None, 1, w.half(), w.half(), 1e-5, True), "weight and bias"),
        ((x.half(), x.bfloat16(), None, 1, w, w, 1e-5, True), "one type"),
        ((x, x.double(), None, 1, w, w, 1e-5, True), "one type"),
        ((x, x[:3], None, 1, w, w, 1e-5, True), "one size"),
        ((x, x.t().contiguous().t(), None, 1, w, w, 1e-5, True), "contiguous"),
        ((x, x, kept[:3], 1, w, w, 1e-5, True), "kept"),
        ((x, x, kept.byte(), 1, w, w, 1e-5, True), "kept"),
        ((x, x, None, 1, w[:5], w, 1e-5, True), "weight and bias"),
        ((x, x, None, 1, w, w.double(), 1e-5, True), "weight and bias"),
        ((x.new_ones(()), x.new_ones(()), None, 1, w, w, 1e-5, True), "rows"),
    ]:
        with pytest.raises(RuntimeError, match=word):
            OPS.add_norm(*args)
    factor = torch.ones(4)
    for args, word in [
        ((x, x[:3], factor, None, 1, w), "one size"),
        ((x, x, factor[:3], None, 1, w), "factor"),
        ((x, x, factor.double(), None, 1, w), "factor"),
        ((x, x, factor, None, 1, w[:5]), "weight and bias"),
    ]:
        with pytest.raises(RuntimeError, match=word):
            OPS.add_norm_backward(*args)
