"""Gradients of the weights of convolutions of large maps, as computed with AVX2."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr import weight_gradients
from detectron2_ddetr.modeling.activation_checkpointing import checkpoint_activations
from detectron2_ddetr.toolbox import Conv2d, build_model
from detectron2_ddetr.weight_gradients import quicken_weight_gradients

from .conftest import small_cfg

LARGE, SMALL = (187, 179), (183, 179)  # of eight channels: more than 2^18 numbers, and less
SEVERAL = {"kernel_size": (3, 5), "padding": (1, 0), "dilation": (2, 1), "stride": (1, 2)}
STRIDED = {"kernel_size": 1, "stride": (2, 3)}
kinds = pytest.mark.parametrize("kind", [SEVERAL, STRIDED], ids=str)


@pytest.fixture(autouse=True)
def capability(monkeypatch):
    """What PyTorch says that the processor has."""
    found = ["AVX2"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found[-1])
    return found


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the maps whose convolutions are computed so."""
    found, apply = [], weight_gradients._Convolution.apply

    def counted(x, *args):
        found.append(tuple(x.shape))
        return apply(x, *args)

    monkeypatch.setattr(weight_gradients._Convolution, "apply", counted)
    return found


def convolution(kind=Conv2d, **kwargs):
    """Quickened, with a norm and an activation if it is the toolbox's."""
    torch.manual_seed(0)
    further = {"norm": nn.BatchNorm2d(6).eval()} if kind is Conv2d else {}
    conv = kind(**{"in_channels": 8, "out_channels": 6, **further, **kwargs})
    quicken_weight_gradients(conv)
    return conv


def image_map(size=LARGE):
    """(2, 8, H, W), channels last."""
    x = torch.rand(2, 8, *size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@kinds
@pytest.mark.parametrize("layer", [nn.Conv2d, Conv2d])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_float64(kind, layer, bias, calls):
    conv, x = convolution(layer, bias=bias, **kind), image_map()
    out = conv(x)
    assert calls == [x.shape]
    assert out.is_contiguous(memory_format=torch.channels_last)
    inputs = [x, *conv.parameters()]
    grad_output = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(out, inputs, grad_output)

    exact = copy.deepcopy(conv).double()
    y = x.detach().double().requires_grad_()
    expected = exact(y)
    assert len(calls) == 1
    assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, [y, *exact.parameters()], grad_output.double())
    for a, b in zip(got, wanted):
        assert_close(a, b.float(), rtol=1e-5, atol=1e-5 * b.abs().max().item())


def test_the_layers_after_it_are_not_left_out(calls):
    """What detectron2's Conv2d has: a norm, then an activation."""
    conv, x = convolution(**STRIDED), image_map()
    conv.norm.running_mean.fill_(0.5)
    conv.activation = F.relu
    plain = F.conv2d(x, conv.weight, conv.bias, conv.stride)
    wanted = F.relu((plain - 0.5) / (1 + conv.norm.eps) ** 0.5)
    assert_close(conv(x), wanted, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1 and (wanted == 0).any() and (wanted > 0).any()


@kinds
def test_second_derivatives(kind, calls):
    """Of the sum of squares of a gradient, by a finite difference."""
    conv, x = convolution(nn.Conv2d, **kind), image_map()
    weight = conv.weight

    def squared():
        (gradient,) = torch.autograd.grad(conv(x).square().sum(), weight, create_graph=True)
        return gradient.square().sum() / 1e10

    step = 1e-2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    (got,) = torch.autograd.grad(squared(), weight)
    values = []
    for sign in (1, -1):
        weight.data.add_(step, alpha=sign)
        values.append(squared().double())
        weight.data.add_(step, alpha=-sign)
    slope = (got * step).sum().double()
    assert_close(slope, (values[0] - values[1]) / 2, rtol=1e-2, atol=0)
    assert len(calls) == 3


@kinds
def test_only_where_it_pays(kind, calls):
    """Not small maps, 16 bits, evaluation, tracing, or weights that do not learn."""
    conv, x = convolution(**kind), image_map()
    conv(image_map(SMALL))
    with torch.autocast("cpu", torch.bfloat16):
        conv(x)
    with torch.no_grad():
        conv(x)
    torch.jit.trace(conv, x.detach(), check_trace=False)
    conv.weight.requires_grad_(False)
    conv(x)
    assert calls == []


@pytest.mark.parametrize(
    "kind",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {**STRIDED, "padding": 1},
        {**STRIDED, "stride": (11, 179)},
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(kind, calls):
    """With strides that divide the map, too."""
    convolution(nn.Conv2d, **kind)(image_map())
    assert calls == []


@kinds
def test_other_processors_keep_theirs(kind, capability, calls):
    capability.append("AVX512")
    convolution(**kind)(image_map())
    assert calls == []


@kinds
def test_activations_computed_again(kind, calls):
    conv, x = convolution(**kind), image_map()
    once = torch.autograd.grad(conv(x).square().sum(), [*conv.parameters()])
    checkpoint_activations([conv])
    again = torch.autograd.grad(conv(x).square().sum(), [*conv.parameters()])
    assert len(calls) == 3
    for a, b in zip(again, once):
        assert_close(a, b, rtol=0, atol=0)


@kinds
def test_copies_have_weights_of_their_own(kind, calls):
    conv, x = convolution(nn.Conv2d, **kind), image_map()
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        other.weight.data.zero_()
        other.bias.data.zero_()
        assert not other(x).any() and conv(x).any()
    assert len(calls) == 4


def test_models_have_it():
    """The convolutions of the toolbox's ResNet and of the projections."""
    names = set()
    for name, conv in build_model(small_cfg()).named_modules():
        if isinstance(conv, nn.Conv2d) and "forward" in vars(conv):
            assert max(*conv.kernel_size, *conv.stride) > 1
            names.add(name)
    assert {"backbone.stem.conv1", "backbone.res3.0.shortcut", "backbone.res5.2.conv2"} < names
    assert len(names) == 1 + (3 + 4 + 6 + 3) + 3 + 1  # stem, blocks, shortcuts, last level
