"""Layers of which few rows have a gradient beside PyTorch's own backward pass."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from detectron2_ddetr.modeling.few_rows import learn_from_few_rows
from detectron2_ddetr.modeling.mlp import MLP


def made(dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(2, 30, 8, dtype=dtype, requires_grad=True)
    return MLP(8, 8, 4, num_layers=3).to(dtype), x


def gradients(call, layers, x, weights):
    leaves = [tensor for tensor in (x, *layers.parameters()) if tensor.requires_grad]
    return torch.autograd.grad((call(x) * weights).sum(), leaves)


def weights_of(rows, dtype=torch.float64):
    weights = torch.zeros(2, 30, 4, dtype=dtype)
    for image, row in rows:
        weights[image, row] = torch.tensor([1.0, 0.0, -2.0, 0.5])
    return weights


@pytest.mark.parametrize(
    "rows",
    [[], [(0, 0)], [(1, 29), (0, 3), (0, 4)], [(i, j) for i in range(2) for j in range(30)]],
    ids=len,
)
@pytest.mark.parametrize("frozen", ["", "weight", "x"])
def test_gradients(rows, frozen):
    """Of no row, some, and all; of what learns alone."""
    layers, x = made()
    layers.layers[0].weight.requires_grad_(frozen != "weight")
    x.requires_grad_(frozen != "x")
    expected = gradients(layers, layers, x, weights_of(rows))
    found = gradients(lambda x: learn_from_few_rows(layers, x), layers, x, weights_of(rows))
    assert len(found) == 7 - bool(frozen)
    for a, b in zip(found, expected):
        assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_results():
    """To the bit, with and without a gradient."""
    layers, x = made(torch.float32)
    assert torch.equal(learn_from_few_rows(layers, x), layers(x))
    with torch.no_grad():
        result = learn_from_few_rows(layers, x)
    assert not result.requires_grad and torch.equal(result, layers(x))


def test_work():
    """The backward pass is that of the rows; a gradient that is no number is one."""
    layers, x = made(torch.float32)
    weights = weights_of([(0, 7)], torch.float32)
    weights[1, 8, 2] = torch.nan
    result = learn_from_few_rows(layers, x)
    with FlopCounterMode(display=False) as counter:
        result.backward(weights)
    per_row = 2 * (8 * 8 + 8 * 8 + 8 * 4)
    assert counter.get_total_flops() == 2 * 3 * per_row  # again forward, and both gradients
    assert x.grad[0, 7].isfinite().all() and x.grad[1, 8].isnan().any()
    assert x.grad.ne(0).any(-1).sum() == 2


def test_mixed_precision():
    """The rows are computed again in the precision of before, whichever the backward pass is in."""
    layers, x = made(torch.float32)
    weights = weights_of([(0, 7), (1, 2)], torch.bfloat16)
    found = []
    for call in (layers, lambda x: learn_from_few_rows(layers, x)):
        with torch.autocast("cpu", torch.bfloat16):
            result = call(x)
        assert result.dtype == torch.bfloat16
        found.append(torch.autograd.grad(result, [x, *layers.parameters()], weights))
    for a, b in zip(*found):
        assert a.dtype == b.dtype == torch.float32
        assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_other_devices():
    """Which would wait for the rows, or, as "meta", have no numbers."""
    layers, x = made(torch.float32)
    x = x.detach().to("meta").requires_grad_()
    learn_from_few_rows(layers.to("meta"), x).sum().backward()
    assert x.grad.shape == x.shape


def test_hooks_see_all_rows():
    layers, x = made()
    seen = []
    layers.layers[1].register_forward_hook(lambda module, given, result: seen.append(result.shape))
    gradients(lambda x: learn_from_few_rows(layers, x), layers, x, weights_of([(0, 7)]))
    assert seen == [(60, 8)]


def test_weights_that_are_lent():
    """By torch.func.functional_call, and taken back before the backward pass."""
    layers, x = made()
    lent = {name: (2 * value).detach() for name, value in layers.named_parameters()}
    found = []
    for call in (layers, Rows(layers)):
        weights = {name: value.clone().requires_grad_() for name, value in lent.items()}
        prefix = "" if call is layers else "layers."
        state = {prefix + name: value for name, value in weights.items()}
        result = torch.func.functional_call(call, state, x)
        loss = (result * weights_of([(0, 7), (1, 2)])).sum()
        found.append(torch.autograd.grad(loss, [x, *weights.values()]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-14)


class Rows(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return learn_from_few_rows(self.layers, x)


def test_layers_of_a_user_are_called_once():
    """What they draw would be another thing the second time."""
    layers, x = made()
    layers.layers[1] = torch.nn.Sequential(layers.layers[1], torch.nn.Dropout(0.5))
    found = []
    for call in (layers, lambda x: learn_from_few_rows(layers, x)):
        torch.manual_seed(1)
        found.append(gradients(call, layers, x, weights_of([(0, 7), (1, 2)])))
        found[-1] += (torch.rand(1),)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
