"""Linear layers on CPUs beside products written out in float64."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2_ddetr.modeling.linear import Linear
from detectron2_ddetr.modeling.mlp import MLP

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN"
)
SHAPES = [(6,), (1, 6), (7, 6), (0, 6), (2, 0, 6), (2, 3, 6), (2, 3, 4, 6), (600, 6)]


def layer(bias=True):
    generator = torch.Generator().manual_seed(0)
    made = Linear(6, 5, bias=bias)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function).removesuffix(".default"))
        return function(*args, **(kwargs or {}))


def doubles(made):
    return [parameter.detach().double().requires_grad_() for parameter in made.parameters()]


def product(x, weight, bias=None):
    """Row by row."""
    result = torch.einsum("...i,oi->...o", x, weight)
    return result if bias is None else result + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_values_and_gradients(shape, bias, dtype, tolerance):
    made = layer(bias).to(dtype)
    x = numbers(*shape).to(dtype).requires_grad_()
    x64, parameters = x.detach().double().requires_grad_(), doubles(made)
    found, expected = made(x), product(x64, *parameters)
    weights = numbers(*expected.shape).double()
    grads = torch.autograd.grad((found * weights.to(dtype)).sum(), [x, *made.parameters()])
    wanted = torch.autograd.grad((expected * weights).sum(), [x64, *parameters])
    with torch.no_grad():
        assert_close(made(x), expected.to(dtype), rtol=tolerance, atol=10 * tolerance)
    assert_close(found, expected.to(dtype), rtol=tolerance, atol=10 * tolerance)
    for grad, want in zip(grads, wanted):
        assert_close(grad, want.to(dtype), rtol=tolerance, atol=100 * tolerance)


def test_rows_that_lie_apart():
    made = layer()
    x = numbers(6, 4, 3).permute(1, 2, 0)
    expected = product(x.double(), *doubles(made)).float()
    assert_close(made(x), expected)
    with torch.no_grad():
        assert_close(made(x), expected)


def test_second_derivatives():
    made = layer()
    x = numbers(4, 6).requires_grad_()
    x64, parameters = x.detach().double().requires_grad_(), doubles(made)
    results = []
    for inputs, result in (
        ([x, *made.parameters()], made(x)),
        ([x64, *parameters], product(x64, *parameters)),
    ):
        (slope,) = torch.autograd.grad(result.pow(3).sum(), inputs[0], create_graph=True)
        results.append(torch.autograd.grad(slope.pow(2).sum(), inputs))
    for found, expected in zip(*results):
        assert_close(found, expected.float(), rtol=1e-4, atol=1e-2)


def test_what_does_not_learn_gets_no_gradient():
    made = layer()
    made.weight.requires_grad_(False)
    made(numbers(4, 6)).sum().backward()
    assert made.weight.grad is None
    assert_close(made.bias.grad, torch.full((5,), 4.0))


@needs_onednn
def test_training_is_by_onednn():
    made, x = layer(), numbers(7, 6).requires_grad_()
    with Names() as names:
        made(x).sum().backward()
    assert names.seen.count("mkldnn._linear_pointwise") == 2 and "aten.addmm" not in names.seen
    with Names() as names:
        nn.Linear(6, 5)(x).sum().backward()
    assert "aten.addmm" in names.seen


def test_the_result_of_rows_may_be_overwritten():
    """Autograd would copy a view."""
    assert not layer()(numbers(7, 6))._is_view()


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_autocast(shape):
    """Rounded as :class:`torch.nn.Linear` rounds, with gradients in the type of the parameters."""
    made, plain = layer(), nn.Linear(6, 5)
    plain.load_state_dict(made.state_dict())
    x = numbers(*shape)
    for run in (made, plain):
        with torch.autocast("cpu", torch.bfloat16):
            result = run(x)
        assert result.dtype == torch.bfloat16
        result.float().sum().backward()
    assert_close(made.weight.grad, plain.weight.grad, rtol=0.02, atol=0.02 * max(1, x.numel() // 6))
    assert_close(made.bias.grad, plain.bias.grad)


def test_hooks_keep_what_a_layer_gave():
    """ReLU takes its place in memory only where nobody looks; a full backward hook forbids it."""
    layers, seen = MLP(4, 6, 3, num_layers=3), []
    x = torch.randn(5, 4, requires_grad=True)
    expected = layers(x)
    layers.layers[0].register_forward_hook(lambda module, given, result: seen.append(result))
    layers.layers[0].register_full_backward_hook(lambda module, of_x, grads: seen.append(grads[0]))
    result = layers(x)
    assert torch.equal(result, expected)
    result.sum().backward()
    assert seen[0].min() < 0 and seen[1].shape == (5, 6)
