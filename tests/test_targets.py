"""Outputs and targets that do not fit are refused, by the criterion and by the matcher alone."""

import math

import pytest
import torch

from detectron2_ddetr.modeling import HungarianMatcher, SetCriterion, sigmoid_topk
from detectron2_ddetr.modeling.matcher import focal_cost

from .modeling_cases import NUM_CLASSES, small_targets

callers = pytest.mark.parametrize(
    "call", [HungarianMatcher(), SetCriterion(HungarianMatcher())], ids=["matcher", "criterion"]
)


def predictions(images=2, queries=9, **other):
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "pred_logits": torch.randn(images, queries, NUM_CLASSES, generator=generator),
        "pred_boxes": torch.rand(images, queries, 4, generator=generator),
    }
    return {**outputs, **other}


def second(**changes):
    """Targets of two images, of which the second is changed by functions of its tensors."""
    targets = small_targets()
    for key, change in changes.items():
        targets[1][key] = change(targets[1][key])
    return targets


def put(value, row=1):
    """Replaces one row of labels or boxes."""

    def change(rows):
        rows = rows.clone()
        rows[row] = torch.tensor(value)
        return rows

    return change


@callers
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (second(labels=put(-1)), "image 1 .*label -1 is none of the 5 classes"),
        (second(labels=put(NUM_CLASSES)), "image 1 .*label 5 is none of the 5 classes"),
        (second(labels=lambda x: x.float()), "image 1 .*int64, got torch.float32"),
        (second(labels=lambda x: x > 0), "image 1 .*int64, got torch.bool"),
        (second(labels=lambda x: x[:, None]), r"image 1 .*\(2, 1\) and \(2, 4\)"),
        (second(labels=lambda x: x[:1]), r"image 1 .*\(1,\) and \(2, 4\)"),
        (second(labels=lambda x: x.tolist()), "image 1 .*tensors 'labels' and 'boxes'"),
        (second(boxes=lambda x: 100 * x), r"image 1 .*box 0 is .* in \[0, 1\]"),
        (second(boxes=put([0.5, 0.5, -0.1, 0.1])), "image 1 .*box 1 is .*-0.1.*negative size"),
        (second(boxes=put([-0.5, 0.5, 0.1, 0.1])), "image 1 .*box 1 is"),
        (second(boxes=put([0.5, 0.5, math.nan, 0.1])), "image 1 .*box 1 is .*nan"),
        (second(boxes=put([0.5, 0.5, math.inf, 0.1])), "image 1 .*box 1 is .*inf"),
        (second(boxes=lambda x: x[:, :3]), r"image 1 .*\(2,\) and \(2, 3\)"),
        (small_targets((2,)), "1 for 2 images"),
        (small_targets((1, 2, 1)), "3 for 2 images"),
        ([], "0 for 2 images"),
        (small_targets()[0], "a list of one dict per image"),
        ([small_targets()[0], {"labels": torch.zeros(0, dtype=torch.int64)}], "image 1 .*'boxes'"),
    ],
)
def test_targets_that_do_not_fit(call, targets, words):
    with pytest.raises(ValueError, match=words):
        call(predictions(), targets)


@callers
@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (predictions(pred_logits=torch.zeros(9, NUM_CLASSES)), r"\(9, 5\) and \(2, 9, 4\)"),
        (predictions(pred_boxes=torch.zeros(1, 9, 4)), r"\(2, 9, 5\) and \(1, 9, 4\)"),
        (predictions(pred_boxes=torch.zeros(2, 8, 4)), r"\(2, 9, 5\) and \(2, 8, 4\)"),
        (predictions(pred_boxes=torch.zeros(2, 9, 5)), r"\(2, 9, 5\) and \(2, 9, 5\)"),
        ({"pred_boxes": torch.zeros(2, 9, 4)}, "no 'pred_logits'"),
    ],
)
def test_outputs_that_do_not_fit(call, outputs, words):
    with pytest.raises(ValueError, match=words):
        call(outputs, small_targets())


@callers
def test_what_is_sound(call):
    """Boxes without size, of the whole image, rounded to 16 bits; labels of 32 bits; no boxes."""
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0], [1.0, 0.0, 0.0, 0.3]])
    labels = torch.tensor([0, NUM_CLASSES - 1, 2])
    for dtype in (torch.int64, torch.int32):
        first = {"labels": labels.to(dtype), "boxes": 1.004 * boxes}
        empty = {"labels": labels[:0].to(dtype), "boxes": boxes[:0]}
        result = call(predictions(), [first, empty])
        if isinstance(result, dict):
            assert all(loss.isfinite() for loss in result.values())
        else:
            assert [len(query) for query, _ in result] == [3, 0]


def test_a_target_elsewhere():
    """Numbers on another device are not looked at; that it is another is said."""
    targets = [{key: x.to("meta") for key, x in target.items()} for target in small_targets()]
    with pytest.raises(ValueError, match="image 0 .*must be on cpu"):
        SetCriterion(HungarianMatcher())(predictions(), targets)


@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
def test_no_class_is_counted_from_the_end(label):
    """Whatever calls it, and on every device, where an index would take -1 for the last class."""
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        focal_cost(torch.zeros(3, NUM_CLASSES), torch.tensor([0, label]))


@pytest.mark.parametrize("name", ["cost_class", "cost_bbox", "cost_giou"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_costs(name, value):
    with pytest.raises(ValueError, match=name):
        HungarianMatcher(**{name: value})


def test_no_cost_at_all():
    with pytest.raises(ValueError, match="one of them more"):
        HungarianMatcher(0, 0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss_ce_weight", -1.0), ("loss_giou_weight", math.nan), ("focal_alpha", 1.5)],
)
def test_weights(name, value):
    with pytest.raises(ValueError, match=name.removesuffix("_weight")):
        SetCriterion(HungarianMatcher(), **{name: value})


@pytest.mark.parametrize("number", [0, -1])
def test_number_of_detections(number):
    outputs = predictions()
    with pytest.raises(ValueError, match=f"at least 1, got {number}"):
        sigmoid_topk(outputs["pred_logits"], outputs["pred_boxes"], number)
