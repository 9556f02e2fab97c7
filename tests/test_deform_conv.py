"""Deformable convolution alone: detectron2's numbers, closed forms, and what is said of it."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import ms_deform_attn
from detectron2_ddetr.modeling.ops.deform_conv import deform_conv2d

from . import golden_cases as golden


def problem(groups=1, offset_groups=1, modulated=True, size=(6, 5), scale=1.0):
    """float64, 4 channels to 6 by 3 x 3 taps, padded; offsets in cells."""
    torch.manual_seed(0)
    height, width = size
    x = torch.randn(2, 4, height, width).double()
    weight = torch.randn(6, 4 // groups, 3, 3).double()
    offset = scale * torch.randn(2, 18 * offset_groups, height, width).double()
    mask = torch.rand(2, 9 * offset_groups, height, width).double() if modulated else None
    return x, offset, weight, mask


@pytest.mark.parametrize("case_id", range(3))
def test_golden_operator(case_id):
    """Outputs and gradients of detectron2's layers, transcribed from its CUDA kernel."""
    case = golden.load(f"dcn_op_{case_id}")
    config = case["config"]
    names = ["input", "offset", "weight"] + ["mask"] * config["modulated"]
    x, offset, weight, *mask = (case[name].requires_grad_() for name in names)
    geometry = {key: (config[key],) * 2 for key in ("stride", "padding", "dilation")}
    output = deform_conv2d(x, offset, weight, *mask, **geometry)
    if config["bias"]:  # which no block of a ResNet has
        output = output + case["bias"][:, None, None]
    assert_close(output, case["output"], rtol=0, atol=1e-10)
    output.backward(case["grad_output"])
    for name in names:
        assert_close(case[name].grad, case[f"grad_{name}"], rtol=0, atol=1e-10)


def test_a_loop():
    """The sum over taps, and a bilinear kernel g g over all cells of the map."""
    x, offset, weight, mask = problem()
    height, width = x.shape[2:]
    expected = torch.zeros(2, 6, height, width).double()
    for image, row, column in itertools.product(range(2), range(height), range(width)):
        for tap in range(9):
            dy, dx = offset[image, 2 * tap : 2 * tap + 2, row, column].tolist()  # height first
            y, x_ = row + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx
            read = sum(
                max(0, 1 - abs(r - y)) * max(0, 1 - abs(c - x_)) * x[image, :, r, c]
                for r, c in itertools.product(range(height), range(width))
            )
            read = read * mask[image, tap, row, column]
            expected[image, :, row, column] += weight[:, :, tap // 3, tap % 3] @ read
    output = deform_conv2d(x, offset, weight, mask, padding=(1, 1))
    assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups, offset_groups", [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_without_offsets_it_is_a_convolution(groups, offset_groups, stride, dilation):
    """And with a modulation of a half, half of one."""
    x, offset, weight, mask = problem(groups, offset_groups)
    geometry = {"stride": (stride,) * 2, "padding": (dilation,) * 2, "dilation": (dilation,) * 2}
    expected = F.conv2d(x, weight, groups=groups, **geometry)
    size = expected.shape[2:]
    offset = torch.zeros_like(offset[:, :, : size[0], : size[1]])
    mask = torch.full_like(mask[:, :, : size[0], : size[1]], 0.5)
    assert_close(deform_conv2d(x, offset, weight, **geometry), expected, rtol=0, atol=1e-12)
    halved = deform_conv2d(x, offset, weight, mask, **geometry)
    assert_close(halved, expected / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("groups, offset_groups", [(1, 1), (2, 2)])
def test_gradients(groups, offset_groups, modulated):
    """Nowhere near a whole number of cells, where the interpolation has a kink."""
    x, offset, weight, mask = problem(groups, offset_groups, modulated, size=(4, 3))
    offset = offset.floor() + 0.2 + 0.6 * torch.rand_like(offset)
    inputs = [t.requires_grad_() for t in (x, offset, weight, mask) if t is not None]
    assert torch.autograd.gradcheck(lambda *t: deform_conv2d(*t, padding=(1, 1)), inputs)


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
def test_it_is_deformable_attention_with_a_head_per_tap(modulated):
    """
    One level, one point, weight 1 (or the modulation), and as value of a head the image that is
    projected with the weight of its tap: the sum over heads is the convolution.
    """
    x, offset, weight, mask = problem(modulated=modulated, scale=3.0)
    height, width = x.shape[2:]
    value = torch.einsum("nchw,dct->nhwtd", x, weight.flatten(2)).flatten(1, 2)  # (N, S, 9, 6)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    taps = torch.arange(9)
    dy, dx = offset.unflatten(1, (9, 2)).unbind(2)
    y = rows + (taps // 3 - 1)[:, None, None] + dy
    x_ = columns + (taps % 3 - 1)[:, None, None] + dx
    # (x, y), width first, in [0, 1]: cell i has its centre at (i + 1/2) / size.
    locations = torch.stack(((x_ + 0.5) / width, (y + 0.5) / height), dim=-1)
    locations = locations.flatten(2, 3).transpose(1, 2)[:, :, :, None, None]  # (N, Q, 9, 1, 1, 2)
    weights = torch.ones_like(dy) if mask is None else mask
    weights = weights.flatten(2).transpose(1, 2)[:, :, :, None, None]
    shapes = torch.tensor([[height, width]])
    by_tap = ms_deform_attn(value, shapes, locations.contiguous(), weights.contiguous())
    output = by_tap.unflatten(-1, (9, 6)).sum(2).transpose(1, 2).unflatten(-1, (height, width))
    expected = deform_conv2d(x, offset, weight, mask, padding=(1, 1))
    assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_never_in_16_bits(dtype):
    """Also under an autocast; the result has the type of what goes in."""

    def results(cast, autocast):
        inputs = [t.to(dtype).to(cast).requires_grad_() for t in problem()]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = deform_conv2d(*inputs, padding=(1, 1))
        output.sum().backward()
        assert output.dtype == cast
        return [output, *(t.grad for t in inputs)]

    for found, expected in zip(results(dtype, True), results(torch.float32, False)):
        assert torch.equal(found, expected.to(dtype))


def test_autocast_of_a_layer_before_it():
    """Whose output is of 16 bits, while the weight is not."""
    x, offset, weight, mask = (t.float().requires_grad_() for t in problem())
    with torch.autocast("cpu", torch.bfloat16):
        before = F.conv2d(x, torch.eye(4)[:, :, None, None])
        output = deform_conv2d(before, offset, weight, mask, padding=(1, 1))
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    for tensor in (x, offset, weight, mask):
        assert tensor.grad.dtype == torch.float32 and tensor.grad.isfinite().all()


def test_counter_of_torch():
    """A tap reads four cells of each channel, then comes the weight; on its way back twice that."""
    from torch.utils.flop_counter import FlopCounterMode

    for groups in (1, 2):
        x, offset, weight, _ = (
            None if t is None else t.requires_grad_() for t in problem(groups, 1, False)
        )
        with FlopCounterMode(display=False) as counter:
            output = deform_conv2d(x, offset, weight, padding=(1, 1))
            forward = counter.get_total_flops()
            output.sum().backward()
        macs = 0
        for _image, _position, _tap in itertools.product(range(2), range(6 * 5), range(9)):
            macs += 4 * 4 + 6 * 4 // groups
        assert forward == 2 * macs and counter.get_total_flops() == 3 * forward


def test_empty_batch():
    x, offset, weight, mask = (t.requires_grad_() for t in problem())
    output = deform_conv2d(x[:0], offset[:0], weight, mask[:0], padding=(1, 1))
    assert output.shape == (0, 6, 6, 5)
    output.sum().backward()


# What is said of it.


def test_a_gradient_reaches_four_cells():
    """Of each sample; so the nine taps of one place reach at most 36."""
    x, offset, weight, _ = problem(size=(20, 20), scale=3.0)
    x.requires_grad_()
    deform_conv2d(x, offset, weight, padding=(1, 1))[0, 0, 10, 10].backward()
    reached = x.grad[0].abs().sum(0) > 0
    assert 9 < reached.sum() <= 36
    one_tap = torch.zeros_like(weight)
    one_tap[:, :, 0, 0] = 1.0
    x.grad = None
    deform_conv2d(x, offset, one_tap, padding=(1, 1))[0, 0, 10, 10].backward()
    assert (x.grad[0].abs().sum(0) > 0).sum() == 4


def test_receptive_field_of_two_convolutions():
    """3 x 3 after 3 x 3 sees 5 x 5; deformable ones see more, and not a square."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 31, 31).double().requires_grad_()
    weight = torch.rand(1, 1, 3, 3).double()

    def seen(scale):
        x.grad, y = None, x
        for _ in range(2):
            offset = scale * torch.randn(1, 18, 31, 31).double()
            y = deform_conv2d(y, offset, weight, padding=(1, 1))
        y[0, 0, 15, 15].backward()
        rows, columns = x.grad[0, 0].nonzero().T
        return rows.max() - rows.min() + 1, columns.max() - columns.min() + 1, len(rows)

    assert seen(0.0) == (5, 5, 25)
    height, width, cells = seen(2.0)
    assert height > 5 and width > 5 and cells > 25


def test_a_tap_travels_in_training():
    """Far beyond its own cells: from (4, 4) up the slope of a map, to the top at (20, 13)."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    hill = torch.exp(-((rows - 20) ** 2 + (columns - 13) ** 2) / 150)[None, None]
    place = torch.full((1, 2, 1, 1), 4.0, requires_grad=True)  # one tap, at (0, 0) without offset
    optimizer = torch.optim.SGD([place], lr=10.0)
    for _ in range(300):
        loss = -deform_conv2d(hill, place, torch.ones(1, 1, 1, 1), stride=(24, 24)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.dist(place.flatten().tolist(), (20, 13)) < 1


def test_eighteen_numbers_for_nine_taps():
    conv = nn.Conv2d(4, 18, 3, padding=1)
    x = torch.randn(1, 4, 6, 5)
    with pytest.raises(RuntimeError, match="offset"):
        deform_conv2d(x, conv(x)[:, :17], torch.randn(6, 4, 3, 3), padding=(1, 1))
    assert deform_conv2d(x, conv(x), torch.randn(6, 4, 3, 3), padding=(1, 1)).shape == (1, 6, 6, 5)
