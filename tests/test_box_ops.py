"""Boxes: hand-written numbers, torchvision as a peer."""

import math

import pytest
import torch
import torchvision
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    box_cxcywh_to_xyxy,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    inverse_sigmoid,
)
from detectron2_ddetr.modeling.box_ops import shift_box


def random_boxes(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.rand(*shape, 4, generator=generator, dtype=torch.float64) + 0.01


def test_conversion():
    """Numbers that tell x from y and width from height; any leading axes; there and back."""
    cxcywh = torch.tensor([[5.0, 20.0, 4.0, 10.0]])
    xyxy = torch.tensor([[3.0, 15.0, 7.0, 25.0]])
    assert_close(box_cxcywh_to_xyxy(cxcywh), xyxy)
    assert_close(box_xyxy_to_cxcywh(xyxy), cxcywh)
    boxes = random_boxes(2, 3)
    assert_close(box_xyxy_to_cxcywh(box_cxcywh_to_xyxy(boxes)), boxes)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 2, 4), 1.0),  # the same
        ((0, 0, 1, 2), 0.25),  # inside, a quarter
        ((2, 0, 4, 4), 0.0),  # beside, the hull is filled
        ((2, 4, 4, 8), -0.5),  # at the corner, half of the hull is empty
        ((6, 0, 8, 4), -0.5),  # apart in x
        ((0, 12, 2, 16), -0.5),  # apart in y
        ((1, 0, 3, 4), 1 / 3),
        ((1, 2, 3, 6), 2 / 14 - 4 / 18),
    ],
)
def test_generalized_iou(box, expected):
    """Parity I65: drawn by hand, in both orders."""
    a, b = torch.tensor([0.0, 0.0, 2.0, 4.0]), torch.tensor([float(x) for x in box])
    assert generalized_box_iou(a, b).item() == pytest.approx(expected)
    assert generalized_box_iou(b, a).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 2, 2), 4 / 4.3072),  # the same: 2x2 pixels of 640x480, whose 1e-6 are 0.3072
        ((2, 0, 4, 2), 0 - 0 / 8.3072),  # beside
        ((2, 2, 4, 4), 0 - 8 / 16.3072),  # at the corner
        ((0, 0, 0, 0), 0 - 0 / 4.3072),  # no area
    ],
)
def test_generalized_iou_with_eps(box, expected):
    """DAB-DETR's: small boxes reach less than 1, in any unit whose square the eps is given in."""
    image = torch.tensor([640.0, 480.0, 640.0, 480.0])
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([float(x) for x in box])
    assert generalized_box_iou(a, b, 0.3072).item() == pytest.approx(expected)
    assert generalized_box_iou(a / image, b / image, 1e-6).item() == pytest.approx(expected)


def test_generalized_iou_broadcasts():
    """Each with each equals torchvision; paired equals its diagonal."""
    a, b = box_cxcywh_to_xyxy(random_boxes(5)), box_cxcywh_to_xyxy(random_boxes(7, 1))[:, 0]
    each = generalized_box_iou(a[:, None], b)
    assert_close(each, torchvision.ops.generalized_box_iou(a, b))
    assert_close(generalized_box_iou(a, b[:5]), each[:, :5].diagonal())


def test_generalized_iou_of_nan():
    """PEERS 7.15: no assertion, the NaN shows in its own pair only."""
    boxes = box_cxcywh_to_xyxy(random_boxes(2))
    broken = boxes.clone()
    broken[1, 2] = math.nan
    giou = generalized_box_iou(boxes, broken)
    assert giou[0].item() == pytest.approx(1.0) and giou[1].isnan()


def test_generalized_iou_of_nothing():
    """No boxes: an empty result that still has a gradient."""
    boxes = torch.zeros(0, 4, requires_grad=True)
    generalized_box_iou(boxes, torch.zeros(0, 4)).sum().backward()
    assert boxes.grad.shape == (0, 4)
    assert generalized_box_iou(boxes[:, None], torch.rand(3, 4)).shape == (0, 3)


def test_generalized_iou_gradient():
    """The gradient, apart as well as overlapping."""
    a = box_cxcywh_to_xyxy(random_boxes(6)).requires_grad_()
    b = box_cxcywh_to_xyxy(random_boxes(6, 1)[:, 0]) + 0.4
    assert torch.autograd.gradcheck(generalized_box_iou, (a, b.requires_grad_()))


def test_inverse_sigmoid():
    """Parity F42: the official numbers; values outside [0, 1]; the other systems' eps."""
    x = torch.tensor([0, 0.3, 0.5, 1, 1.2])
    expected = torch.tensor([-11.512925, -0.847298, 0, 11.512925, 11.512925])
    assert_close(inverse_sigmoid(x.double()), expected.double(), rtol=0, atol=1e-6)
    assert_close(inverse_sigmoid(x), expected, rtol=1e-6, atol=1e-6)
    assert_close(inverse_sigmoid(torch.tensor(0.0), 1e-3).item(), math.log(0.001))


def test_shift_box():
    """Parity F43, F44: a point gives the centre only; a box gives all four, in logit space."""
    delta = torch.tensor([math.log(3), -math.log(3), 0.0, math.log(4)])
    point, box = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.25, 0.2, 0.5])
    # odds times three, by a third, by one, by four
    assert_close(shift_box(delta, point), torch.tensor([0.75, 0.1, 0.5, 0.8]))
    assert_close(shift_box(delta, box), torch.tensor([0.75, 0.1, 0.2, 0.8]))


def test_shift_box_eps():
    """A reference at the edge has odds eps, or 1 / eps."""
    edge = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for eps in (1e-5, 1e-3):
        low, high = eps / (1 + eps), 1 / (1 + eps)
        expected = torch.tensor([low, high, low, high])
        assert_close(shift_box(torch.zeros(4), edge, eps), expected, rtol=1e-4, atol=0)
