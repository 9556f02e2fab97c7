"""Convolutions that leave one column, where a processor has AMX, beside those in float64."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.narrow_maps import leaves_one_column, widen_narrow_maps
from detectron2_ddetr.toolbox import Conv2d

KINDS = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False},
    {"kernel_size": (2, 5), "stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
]


@pytest.fixture(autouse=True)
def amx(monkeypatch):
    """As if the processor had it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


def layer(kind, cls=nn.Conv2d, **further):
    torch.manual_seed(0)
    conv = cls(8, 6, **kind, **further)
    conv.weight.data = conv.weight.data.bfloat16().float()
    widen_narrow_maps(conv)
    return conv


def narrow_map(width, height=16):
    x = torch.randn(2, 8, height, width, generator=torch.Generator().manual_seed(1)).bfloat16()
    return x.float().contiguous(memory_format=torch.channels_last).requires_grad_()


def columns(conv, x):
    """How many there are, as counted by the convolution of float64, which nothing changes."""
    return type(conv).forward(copy.deepcopy(conv).double(), x.double()).shape[3]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_numbers_and_gradients(kind, width):
    conv, x = layer(kind), narrow_map(width)
    with torch.autocast("cpu", torch.bfloat16):
        assert leaves_one_column(conv, x) == (columns(conv, x) == 1)
        y = conv(x)
    grad = torch.linspace(-1, 1, y.numel()).view_as(y).bfloat16()
    exact = [t.detach().double().requires_grad_() for t in (x, *conv.parameters())]
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)
    expected = F.conv2d(exact[0], exact[1], exact[2] if len(exact) > 2 else None, *options)
    assert y.shape == expected.shape
    y.backward(grad)
    expected.backward(grad.double())
    pairs = [(y, expected), *((a.grad, b.grad) for a, b in zip((x, *conv.parameters()), exact))]
    for found, wanted in pairs:
        scale = wanted.abs().max().item()
        assert_close(found.double(), wanted.detach(), rtol=0, atol=0.01 * scale)


def test_what_comes_behind():
    """The norm of the toolbox's convolution sees one column."""
    seen = []
    norm = nn.BatchNorm2d(6)
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    conv = layer(KINDS[0], Conv2d, norm=norm)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(narrow_map(2))
    assert seen == [(2, 6, 8, 1)] == [tuple(y.shape)]
    assert_close(y.float().mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=0.01)


def test_the_rest_is_as_it_was(monkeypatch):
    """In float32; wide maps; without a stride, a kernel of one cell; processors without AMX."""
    conv = layer(KINDS[0])
    assert not leaves_one_column(conv, narrow_map(2))
    assert leaves_one_column(conv, narrow_map(2).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        for kind in ({"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "stride": 2}):
            assert not leaves_one_column(layer(kind), narrow_map(1))
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert "forward" not in vars(layer(KINDS[0]))


def test_copies():
    """A copy reads its own weights."""
    conv = layer(KINDS[0])
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        nn.init.zeros_(other.weight)
        nn.init.ones_(other.bias)
        with torch.autocast("cpu", torch.bfloat16):
            assert (other(narrow_map(2)) == 1).all() and not (conv(narrow_map(2)) == 1).all()
