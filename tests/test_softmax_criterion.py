"""DETR's class loss: by loops over its definition, in parts, without boxes."""

import math

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import SoftmaxCriterion, SoftmaxMatcher, softmax_cost

from .modeling_cases import NUM_CLASSES, NUM_QUERIES, small_targets


def predictions(images=2, seed=0):
    """Of K + 1 classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, NUM_QUERIES, NUM_CLASSES + 1, generator=generator)
    boxes = 0.1 + 0.3 * torch.rand(images, NUM_QUERIES, 4, generator=generator)
    return {"pred_logits": logits.double(), "pred_boxes": boxes.double()}


def weighted_mean(criterion, outputs, targets):
    """The class loss, query by query: 1 for a class, 0.1 for no object, over the sum of those."""
    loss = weights = 0.0
    for i, (queries, found) in enumerate(criterion.matcher(outputs, targets)):
        wanted = dict(zip(queries.tolist(), targets[i]["labels"][found].tolist()))
        for q in range(NUM_QUERIES):
            logits = outputs["pred_logits"][i, q].tolist()
            label = wanted.get(q, NUM_CLASSES)
            weight = 1.0 if q in wanted else 0.1
            total = sum(map(math.exp, logits))
            loss -= weight * math.log(math.exp(logits[label]) / total)
            weights += weight
    return loss / weights


def test_cost():
    logits = torch.randn(4, 3)
    labels = torch.tensor([2, 0])
    cost = softmax_cost(logits, labels)
    for q in range(4):
        for t in range(2):
            expected = -logits[q, labels[t]].exp() / logits[q].exp().sum()
            assert_close(cost[q, t], expected)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0), (NUM_QUERIES + 2, 1)])
def test_loss(counts):
    """Images without boxes, and with more than there are queries."""
    criterion = SoftmaxCriterion(SoftmaxMatcher(), loss_ce_weight=3.0)
    outputs, targets = predictions(), small_targets(counts, dtype=torch.float64)
    losses = criterion(outputs, targets)
    expected = 3.0 * weighted_mean(criterion, outputs, targets)
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-12)
    assert losses["loss_bbox"].isfinite() and losses["loss_giou"].isfinite()


def test_phantoms_and_duplicates_cost():
    """The order of queries and targets does not; a box of nothing has no gradient."""
    criterion = SoftmaxCriterion(SoftmaxMatcher())
    (target,) = targets = small_targets((2,), dtype=torch.float64)
    logits = torch.zeros(1, 6, NUM_CLASSES + 1, dtype=torch.float64)
    logits[..., -1] = 8.0  # no object
    logits[0, [1, 4], -1] = 0.0
    logits[0, [1, 4], target["labels"]] = 8.0
    boxes = torch.full((1, 6, 4), 0.3, dtype=torch.float64)
    boxes[0, [1, 4]] = target["boxes"]

    def loss(logits, boxes, targets=targets):
        return sum(criterion({"pred_logits": logits, "pred_boxes": boxes}, targets).values())

    right = loss(logits, boxes)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(loss(logits[:, order], boxes[:, order]), right)
    assert_close(loss(logits, boxes, [{key: x.flip(0) for key, x in target.items()}]), right)
    phantom, duplicate = logits.clone(), boxes.clone()
    phantom[0, 2] = logits[0, 1]
    duplicate[0, 2] = boxes[0, 1]
    assert right < 0.01 and loss(phantom, boxes) > 10 * right
    assert loss(phantom, duplicate) > 10 * right
    boxes.requires_grad_()
    loss(logits, boxes).backward()
    assert not boxes.grad[0, [0, 2, 3, 5]].any()


def test_parts_add_up_to_the_batch():
    """Each is divided by the weights of the whole, also of images that come later."""
    criterion = SoftmaxCriterion(SoftmaxMatcher())
    counts = [3, 0, NUM_QUERIES + 1, 2]
    outputs, targets = predictions(4), small_targets(counts, dtype=torch.float64)
    whole = criterion(outputs, targets)
    criterion.batch_boxes = counts
    parts = [
        criterion({key: x[a:b] for key, x in outputs.items()}, targets[a:b])
        for a, b in ((0, 1), (1, 4))
    ]
    for name, loss in whole.items():
        assert_close(sum(part[name] for part in parts), loss, rtol=1e-12, atol=0)


def test_what_is_reported():
    """By how many boxes the number of queries with an object is wrong; and the class error."""
    criterion = SoftmaxCriterion(SoftmaxMatcher())
    outputs, targets = predictions(), small_targets((3, 2), dtype=torch.float64)
    outputs["pred_logits"] = torch.zeros_like(outputs["pred_logits"])
    outputs["pred_logits"][..., -1] = 9.0  # no object
    outputs["pred_logits"][0, :5, 1] = 10.0  # five objects in the first image
    criterion({**outputs, "aux_outputs": [predictions()]}, targets)
    assert set(criterion.diagnostics) == {
        "class_error", "cardinality_error", "cardinality_error_0",
    }  # fmt: skip
    assert criterion.diagnostics["cardinality_error"] == (abs(5 - 3) + abs(0 - 2)) / 2


def test_no_object_is_no_label():
    criterion = SoftmaxCriterion(SoftmaxMatcher())
    targets = small_targets((1, 0), dtype=torch.float64)
    targets[0]["labels"][0] = NUM_CLASSES
    with pytest.raises(ValueError, match=f"label {NUM_CLASSES} is none of the {NUM_CLASSES} cla"):
        criterion(predictions(), targets)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, math.nan])
def test_weights_that_cannot_be(weight):
    with pytest.raises(ValueError, match="no_object_weight must be above 0, at most 1"):
        SoftmaxCriterion(SoftmaxMatcher(), no_object_weight=weight)
