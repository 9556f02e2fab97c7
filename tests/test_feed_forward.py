"""Feed-forward networks of a transformer's layers beside the formula written out in float64."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from detectron2_ddetr.modeling import feed_forward as module
from detectron2_ddetr.modeling.dropout import Dropout
from detectron2_ddetr.modeling.feed_forward import feed_forward
from detectron2_ddetr.modeling.linear import Linear

COUNTS = [0, 1, 8, 9, 24, 25]


@pytest.fixture(autouse=True)
def parts_of_8(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 8)


def layers(kind=Linear, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    made = kind(6, 10), kind(10, 6)
    for parameter in (p for layer in made for p in layer.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return [layer.to(dtype) for layer in made]


def tokens(count, dtype=torch.float32):
    x = torch.randn(1, count, 6, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


def formula(x, linear1, linear2, kept=None, p=0.0):
    """And its leaves, in float64."""
    parameters = [*linear1.parameters(), *linear2.parameters()]
    leaves = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    x, weight1, bias1, weight2, bias2 = leaves
    hidden = (torch.einsum("nrc,hc->nrh", x, weight1) + bias1).clamp(min=0)
    if kept is not None:
        hidden = hidden * kept / (1 - p)
    return torch.einsum("nrh,ch->nrc", hidden, weight2) + bias2, leaves


def check_gradients(result, inputs, expected, leaves):
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((result * weights.to(result.dtype)).sum(), inputs)
    for grad, want in zip(found, torch.autograd.grad((expected * weights).sum(), leaves)):
        assert_close(grad, want.to(grad.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_training(count, dtype, p):
    """What is dropped is what PyTorch's generator draws for all rows at once."""
    linear1, linear2 = layers(dtype=dtype)
    x = tokens(count, dtype)
    torch.manual_seed(3)
    kept = torch.empty(1, count, 10).bernoulli_(1 - p) if p else None
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found = feed_forward(x, linear1, Dropout(p).train(), linear2)
    if p:
        assert torch.equal(torch.get_rng_state(), after)
    expected, leaves = formula(x, linear1, linear2, kept, p)
    assert_close(found, expected.to(dtype), rtol=1e-5, atol=1e-5)
    inputs = [x, *linear1.parameters(), *linear2.parameters()]
    check_gradients(found, inputs, expected, leaves)


@pytest.mark.parametrize("count", COUNTS)
def test_evaluation(count):
    """A few rows at a time where there are no gradients; nothing is dropped."""
    linear1, linear2 = layers()
    seen = []
    linear1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    x = tokens(count)
    expected, leaves = formula(x, linear1, linear2)
    dropout = Dropout(0.3).eval()
    found = feed_forward(x, linear1, dropout, linear2)
    assert_close(found, expected.float())
    check_gradients(found, [x], expected, leaves[:1])
    with torch.no_grad():
        assert_close(feed_forward(x, linear1, dropout, linear2), expected.float())
    parts = [8] * (count // 8) + [count % 8] * (count % 8 > 0)
    assert seen == [count] + (parts or [0])


def test_dropout_that_is_evaluated_while_gradients_are_asked_for():
    linear1, linear2 = layers()
    x = tokens(25)
    found = feed_forward(x, linear1, Dropout(0.3).eval(), linear2)
    expected, leaves = formula(x, linear1, linear2)
    assert_close(found, expected.float())
    check_gradients(found, [x, *linear1.parameters(), *linear2.parameters()], expected, leaves)


def test_all_is_dropped():
    linear1, linear2 = layers()
    found = feed_forward(tokens(25), linear1, Dropout(1.0).train(), linear2)
    assert_close(found, linear2.bias.expand(1, 25, 6))


def test_whoever_looks_at_a_layer_sees_all_rows():
    """Hooks, and layers that are derived of ours, as adapters of low rank are."""

    class Adapted(Linear):
        def forward(self, x):
            return super().forward(x) + 1

    for kind in (Linear, Adapted):
        linear1, linear2 = layers(kind)
        seen = []
        linear2.register_forward_hook(lambda _, args, out: seen.append((len(args[0]), len(out))))
        feed_forward(tokens(25), linear1, Dropout(0.3).train(), linear2)
        assert seen == [(25, 25)]
    linear1, linear2 = layers(Adapted)
    found = feed_forward(tokens(25), linear1, Dropout(0.0), linear2)
    linear1, linear2 = layers()
    with torch.no_grad():
        linear1.bias += 1
        linear2.bias += 1
    assert_close(found, formula(tokens(25), linear1, linear2)[0].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", range(4))
def test_what_does_not_learn_gets_no_gradient(frozen):
    linear1, linear2 = layers()
    parameters = [*linear1.parameters(), *linear2.parameters()]
    parameters[frozen].requires_grad_(False)
    feed_forward(tokens(25), linear1, Dropout(0.3).train(), linear2).sum().backward()
    assert [p.grad is None for p in parameters] == [i == frozen for i in range(4)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN")
def test_what_is_kept_for_the_gradient():
    """The tokens and the hidden numbers once, whatever is dropped, beside the weights."""
    linear1, linear2 = layers()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        feed_forward(tokens(25), linear1, Dropout(0.3).train(), linear2)
    weights = {p.data_ptr() for layer in (linear1, linear2) for p in layer.parameters()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in weights) == 25 * (6 + 10)


@pytest.mark.parametrize("kind", [Linear, nn.Linear])
def test_counters_of_products_see_all(kind):
    """Of the forward pass and, twice, of the backward pass."""
    linear1, linear2 = layers(kind)
    with FlopCounterMode(display=False) as counter:
        feed_forward(tokens(25), linear1, Dropout(0.3).train(), linear2).sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 2 * 25 * 6 * 10)


def test_layers_of_pytorch():
    linear1, linear2 = layers(nn.Linear)
    x = tokens(25)
    expected, leaves = formula(x, linear1, linear2)
    found = feed_forward(x, linear1, Dropout(0.0), linear2)
    assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    check_gradients(found, [x], expected, leaves[:1])


@pytest.mark.parametrize("count", [5, 25])
@pytest.mark.parametrize("train", [True, False])
def test_layers_of_a_user(count, train):
    """Another dropout is called, and hooks have numbers that nobody overwrites."""
    (linear1, linear2), x, kept = layers(), tokens(count), []
    expected, _ = formula(x, linear1, linear2)
    for dropout in (nn.Identity(), Dropout(0.0).train(train)):
        hooks = [
            linear1.register_forward_hook(lambda module, given, result: kept.append(result)),
            linear1.register_full_backward_hook(lambda module, grads, of: None),
        ]
        with torch.set_grad_enabled(train):
            result = feed_forward(x, linear1, dropout, linear2)
        assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
        assert all(numbers.min() < 0 for numbers in kept) and kept
        for hook in hooks:
            hook.remove()
    called = []
    dropout.register_forward_hook(lambda module, given, result: called.append(len(given[0])))
    with torch.set_grad_enabled(train):
        feed_forward(x, linear1, dropout, linear2)
    assert sum(called) == count
