"""Matching, losses, gradients, query maps and position encodings, as `ddetr inspect` draws them."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    HungarianMatcher,
    PositionEmbeddingSine,
    SetCriterion,
    capture,
)
from detectron2_ddetr.toolbox import build_model
from detectron2_ddetr.visualization.drawing import class_color
from detectron2_ddetr.visualization.inspection.gradient_maps import (
    gradient_maps,
    gradient_norms,
    share_inside,
)
from detectron2_ddetr.visualization.inspection.matching import Matched, match, matching
from detectron2_ddetr.visualization.inspection.matching_by_checkpoint import (
    Checkpoint,
    caption,
    matching_by_checkpoint,
)
from detectron2_ddetr.visualization.inspection.position_encodings import (
    encoding_of,
    likeness,
    position_encodings,
)
from detectron2_ddetr.visualization.inspection.query_losses import losses_of_queries, query_losses
from detectron2_ddetr.visualization.inspection.query_map import (
    BACKGROUND,
    SIDE,
    box_color,
    query_map,
)
from detectron2_ddetr.visualization.inspection.view import View

from .conftest import small_cfg
from .modeling_cases import NUM_QUERIES, small_targets
from .test_inspection import is_picture, view_of
from .test_seams import SoftmaxCriterion, softmax_cost

NO_BOX = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}


def test_the_matching_is_the_cheapest_of_all():
    """Of the predictions of this image of the batch."""
    view, target = view_of(index=1), small_targets((0, 3))[1]
    matched = match(view, HungarianMatcher(), target)
    assert matched.cost.shape == (NUM_QUERIES, 3)
    assert [t for _, t in matched.pairs] == [0, 1, 2]
    total = sum(matched.cost[pair] for pair in matched.pairs)
    cheapest = min(
        sum(matched.cost[q, t] for t, q in enumerate(queries))
        for queries in itertools.permutations(range(NUM_QUERIES), 3)
    )
    assert total == pytest.approx(cheapest)
    boxes, labels = view.captured.outputs["pred_boxes"][1], target["labels"]
    l1 = (boxes[:, None] - target["boxes"]).abs().sum(-1)
    only = match(view, HungarianMatcher(0.0, 1.0, 0.0), target)
    np.testing.assert_allclose(only.cost, l1.numpy(), rtol=1e-4, atol=1e-6)
    assert len(labels) == 3


def test_a_pair_is_drawn_in_one_colour():
    view = view_of()
    view.image[:] = 255
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.3, 0.6, 0.2, 0.4]])}
    drawn = matching(view, match(view, HungarianMatcher(), target))
    assert is_picture(drawn)
    rows, columns = (drawn == class_color(0)).all(-1).nonzero()
    assert len(rows) > 500
    with pytest.raises(ValueError, match="no ground truth box"):
        matching(view, match(view, HungarianMatcher(), NO_BOX))


def test_matching_by_checkpoint():
    """What the pairs cost, and which are others than before; each checkpoint has its own boxes."""
    cost = np.arange(12.0).reshape(4, 3)
    first = Matched({}, cost, [(0, 0), (1, 1), (2, 2)])
    second = Matched({}, cost, [(1, 0), (0, 1), (2, 2)])
    assert caption("a.pth", first, None) == "a.pth: the pairs cost 12.00 together"
    assert caption("b.pth", second, first) == (
        "b.pth: the pairs cost 12.00 together; 2 of 3 boxes have another query than before"
    )
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.3, 0.6, 0.2, 0.4]])}
    checkpoints, inked = [], []
    for name, place in (("a", 0.2), ("b", 0.7)):
        view = view_of()
        view.image[:] = 255
        view.captured.outputs["pred_boxes"][:] = torch.tensor([place, 0.5, 0.1, 0.1])
        checkpoints.append(Checkpoint(name, view, match(view, HungarianMatcher(), target)))
        drawn = matching_by_checkpoint(checkpoints[-1:])
        assert is_picture(drawn)
        inked.append(drawn)
    both = matching_by_checkpoint(checkpoints)
    assert is_picture(both) and both.shape[1] > drawn.shape[1]
    columns = (inked[0] != inked[1]).any(-1).any(0).nonzero()[0] / inked[0].shape[1]
    assert columns.min() < 0.25 and columns.max() > 0.6


@pytest.mark.parametrize(
    "criterion",
    [
        SetCriterion(HungarianMatcher(), 1.5, 4.0, 3.0, 0.4),
        SoftmaxCriterion(HungarianMatcher(1.0, class_cost_function=softmax_cost), 1.0),
    ],
)
@pytest.mark.parametrize("count", [0, 3, NUM_QUERIES + 2])
def test_the_losses_of_queries_add_up(criterion, count):
    """To what the criterion says of the image alone; only matched queries have losses of boxes."""
    view, target = view_of(index=1), small_targets((count,))[0]
    matched = match(view, criterion.matcher, target)
    if isinstance(criterion, SoftmaxCriterion) and count == 0:
        assert matched.pairs == []
    losses = losses_of_queries(criterion, view, matched)
    outputs = {k: view.captured.outputs[k][1:] for k in ("pred_logits", "pred_boxes")}
    expected = criterion(outputs, [target])
    for name, loss in losses.items():
        assert loss.shape == (NUM_QUERIES,)
        assert loss.sum() == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6)
    found = {q for q, _ in matched.pairs}
    assert len(found) == min(count, NUM_QUERIES)
    assert set(losses["loss_bbox"].nonzero()[0].tolist()) == found
    if count:
        assert is_picture(query_losses(view, matched, losses))


def test_the_loss_of_a_query_that_is_not_matched():
    """By the formula of the focal loss."""
    view, target = view_of(), small_targets((2,))[0]
    criterion = SetCriterion(HungarianMatcher())
    matched = match(view, criterion.matcher, target)
    losses = losses_of_queries(criterion, view, matched)
    query = next(q for q in range(NUM_QUERIES) if q not in dict(matched.pairs))
    logits = view.captured.outputs["pred_logits"][view.index, query].tolist()
    probabilities = [1 / (1 + math.exp(-x)) for x in logits]
    focal = sum(0.75 * p**2 * -math.log(1 - p) for p in probabilities)
    assert losses["loss_ce"][query] == pytest.approx(2.0 * focal / 2, rel=1e-4)


def test_colours_of_boxes():
    """Green small, red wide, blue tall."""
    assert box_color(0.0, 0.0) == (0, 255, 0)
    assert box_color(1.0, 0.0) == (0, 255, 0)  # no area
    assert box_color(1.0, 1.0) == (128, 0, 128)
    red, green, blue = box_color(0.8, 0.2)
    assert (red, green, blue) == (round(255 * 0.4 * 0.8), round(255 * 0.6), round(255 * 0.4 * 0.2))
    assert box_color(0.2, 0.8) == (blue, green, red)


def test_a_box_is_a_point_in_the_panel_of_its_query():
    boxes = np.zeros((1, 3, 4))
    boxes[0, 1] = (0.25, 0.75, 0.5, 0.1)
    boxes[0, 2] = (2.0, -1.0, 0.1, 0.5)  # outside: at the edge
    drawn = query_map(boxes, [1, 2])
    assert is_picture(drawn)
    rows, columns = (drawn == BACKGROUND).all(-1).nonzero()
    top, left, right = rows.min() - 1, columns.min() - 1, columns.max() + 1
    rows, columns = (drawn == box_color(0.5, 0.1)).all(-1).nonzero()
    assert len(rows) == 25
    assert abs((columns.mean() - left) / (SIDE - 1) - 0.25) < 0.01
    assert abs((rows.mean() - top) / (SIDE - 1) - 0.75) < 0.01
    rows, columns = (drawn == box_color(0.1, 0.5)).all(-1).nonzero()
    assert 0 < rows.min() - top and rows.max() - top < 7 and 0 < right - columns.max() < 4


def test_encodings_are_those_of_the_model():
    embedding = PositionEmbeddingSine(16, temperature=50.0, offset=0.0)
    expected = embedding(torch.zeros(1, 5, 8, dtype=torch.bool))[0].numpy()
    np.testing.assert_array_equal(encoding_of(embedding, (5, 8)), expected)
    other = encoding_of(embedding, (5, 8), 20.0)
    assert other.shape == (32, 5, 8) and not np.allclose(other, expected)
    alike = likeness(expected)
    assert alike.shape == (5, 8) and alike[2, 4] == pytest.approx(1.0)
    assert np.unravel_index(alike.argmax(), alike.shape) == (2, 4)
    cell = expected[:, 0, 7] @ expected[:, 2, 4] / (expected[:, 2, 4] ** 2).sum()
    assert alike[0, 7] == pytest.approx(cell, rel=1e-5)
    # A lower temperature tells cells better apart.
    assert likeness(encoding_of(embedding, (5, 8), 2.0)).mean() < alike.mean()
    for shape in ((5, 8), (9, 3), (1, 1), (50, 1)):
        assert is_picture(position_encodings(embedding, shape))


@pytest.fixture(scope="module")
def model_and_inputs():
    """A thin model in float64, and two images, of which the second is padded."""
    torch.manual_seed(0)
    model = build_model(small_cfg("MODEL.BACKBONE.FREEZE_AT", 0)).eval()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    generator = torch.Generator().manual_seed(0)
    sizes = ((64, 96), (48, 80))
    images = [255 * torch.rand(3, *size, generator=generator) for size in sizes]
    return model.double(), [{"image": image.double()} for image in images]


def test_gradient_norms_by_differences(model_and_inputs):
    """Of the pixel with the largest norm: what each number does when its channels change."""
    model, inputs = model_and_inputs
    norms = gradient_norms(model, inputs, 3, index=1)
    assert norms.shape == (5, 48, 80)
    eps = 1e-4

    def numbers(shift, y, x, channel):
        image = inputs[1]["image"].clone()
        image[channel, y, x] += shift * model.pixel_std.flatten()[channel]
        with torch.no_grad():
            padded = model.preprocess_image([inputs[0], {"image": image}])
            outputs = model.network_outputs(padded)
        score = outputs["pred_logits"][1, 3].sigmoid().max()
        return torch.cat((outputs["pred_boxes"][1, 3], score[None]))

    for number in range(5):
        y, x = (int(i) for i in np.unravel_index(norms[number].argmax(), norms[number].shape))
        slopes = [
            (numbers(eps, y, x, c)[number] - numbers(-eps, y, x, c)[number]) / (2 * eps)
            for c in range(3)
        ]
        assert_close(
            torch.stack(slopes).norm().item(), float(norms[number, y, x]), rtol=0.02, atol=0
        )


def test_gradient_maps(model_and_inputs):
    model, inputs = model_and_inputs
    with capture(model) as captured, torch.no_grad():
        model(inputs)
    view = View(np.full((96, 160, 3), 90, np.uint8), captured, 1)
    assert is_picture(gradient_maps(view, 3, gradient_norms(model, inputs, 3, index=1)))


def test_share_inside():
    values = np.zeros((4, 8))
    values[1, 6], values[3, 0] = 3.0, 1.0
    assert share_inside(values, np.array([0.5, 0.0, 1.0, 0.5])) == pytest.approx(0.75)
    assert share_inside(values, np.array([0.0, 0.5, 0.5, 1.0])) == pytest.approx(0.25)
    assert share_inside(np.zeros((4, 8)), np.array([0.0, 0.0, 1.0, 1.0])) == 0.0
