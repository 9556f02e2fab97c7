"""The pictures of DETR's attention, and AP by layer, as `ddetr inspect` draws them."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import SoftmaxCriterion, SoftmaxMatcher, capture, sigmoid_topk
from detectron2_ddetr.visualization.inspection.dense_attention import (
    attention_of_objects,
    decoder_maps,
    encoder_maps,
)
from detectron2_ddetr.visualization.inspection.layer_ap import COLORS, ap_of_layers, layer_ap
from detectron2_ddetr.visualization.inspection.matching import match
from detectron2_ddetr.visualization.inspection.query_losses import losses_of_queries
from detectron2_ddetr.visualization.inspection.trajectory import centres, trajectory
from detectron2_ddetr.visualization.inspection.view import View

from .modeling_cases import NUM_QUERIES, randomise, small_targets
from .test_dense import features, small_detr
from .test_inspection import is_picture


def view_of(index=1):
    """Of images of 6 x 9 and 5 x 6 cells; each file is as large as its cells at stride 32."""
    head = randomise(small_detr(), std=0.3).double().eval()
    with capture(head) as captured, torch.no_grad():
        head(*features())
    height, width = ((192, 288), (160, 192))[index]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return View(image, captured, index, ("a", "b", "c", "d", "e"))


@pytest.mark.parametrize("index, shape", [(0, (6, 9)), (1, (5, 6))])
def test_a_map_is_of_the_cells_of_the_image(index, shape):
    """Row by row of the padded map, without its padding; of all heads alike."""
    view = view_of(index)
    for kind, query in (("encoder", 13), ("decoder", 4)):
        values = view.attention_map(kind, 1, query)
        assert values.shape == shape and values.sum() == pytest.approx(1)
        weights = view.captured.attention[kind, 1].weights()[index, :, query].mean(0)
        for row, column in ((0, 0), (2, 5), (4, 1)):
            assert values[row, column] == pytest.approx(weights[9 * row + column].item())


def one_cell(view, kind, layer, query, cell):
    """Makes a query attend to one cell alone."""
    record = view.captured.attention[kind, layer]
    record.query[view.index, :, query] = record.key[view.index, :, cell] * 1e3
    record.key[view.index] *= -1
    record.key[view.index, :, cell] *= -1


def test_the_place_of_the_attention_is_the_brightest():
    """Cell (row 3, column 4) is around the pixel (144, 112)."""
    view = view_of()
    one_cell(view, "encoder", 1, view.cell_at(20, 50, 0), 9 * 3 + 4)
    drawn = encoder_maps(view, [(20.0, 50.0)], 1)
    assert is_picture(drawn)
    scale = 600 / 192 if drawn.shape[1] < 700 else None
    yellow = (drawn[-round(160 * scale) :].astype(int) - (253, 231, 37)).__abs__().sum(-1)
    row, column = np.unravel_index(yellow.argmin(), yellow.shape)
    left = drawn.shape[1] - round(192 * scale)
    assert abs((column - left / 2) / scale - 144) < 16 and abs(row / scale - 112) < 24


def test_every_picture_is_drawn():
    view = view_of()
    assert is_picture(decoder_maps(view, list(range(NUM_QUERIES)), 2, "queries"))
    assert is_picture(attention_of_objects(view, list(range(NUM_QUERIES)), 2))
    assert is_picture(encoder_maps(view, [(1, 1), (190, 150)], 0))


def test_the_way_of_a_query_begins_at_its_first_box():
    """There is no reference before it."""
    view = view_of()
    boxes = np.stack([view.boxes(layer)[4] for layer in range(3)])
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres(view, 4, boxes), middles)
    assert is_picture(trajectory(view, [4, 2]))


def test_scores_leave_no_object_out():
    view = view_of()
    logits = view.captured.outputs["pred_logits"][1]
    assert_close(view.scores(2), logits.softmax(-1)[:, :-1])


@pytest.mark.parametrize("count", [0, 3, NUM_QUERIES + 2])
def test_the_losses_of_queries_add_up(count):
    """To what the criterion says of the image alone: a mean by weights of the class loss."""
    view, target = view_of(), small_targets((count,), dtype=torch.float64)[0]
    criterion = SoftmaxCriterion(SoftmaxMatcher(), loss_ce_weight=2.0)
    losses = losses_of_queries(criterion, view, match(view, criterion.matcher, target))
    outputs = {k: view.captured.outputs[k][1:] for k in ("pred_logits", "pred_boxes")}
    expected = criterion(outputs, [target])
    for name, loss in losses.items():
        assert loss.sum() == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6)


class Layers(torch.nn.Module):
    """A model whose first layer finds each box twice, surely, and whose last finds it once."""

    num_detections = 10
    select_detections = staticmethod(sigmoid_topk)

    def __init__(self, targets):
        super().__init__()
        self.head = torch.nn.Module()
        self.head.num_classes = 2
        self.targets, self.images = targets, 0

    def preprocess_image(self, batched_inputs):
        return batched_inputs

    def network_outputs(self, images):
        target = self.targets[self.images % len(self.targets)]
        self.images += 1

        def layer(boxes, labels, scores):
            logits = torch.full((1, len(boxes), 2), -9.0)
            logits[0, range(len(boxes)), labels] = torch.tensor(scores)
            return {"pred_logits": logits, "pred_boxes": boxes[None]}

        boxes, labels = target["boxes"], target["labels"].tolist()
        scores = [4.0, 2.0][: len(labels)]
        moved = boxes + torch.tensor([0.004, 0.0, 0.0, 0.0])
        duplicates = [score - 1 for score in scores]  # that of the first before the second box
        twice = layer(torch.cat((boxes, moved)), labels * 2, scores + duplicates)
        return {**layer(boxes, labels, scores), "aux_outputs": [twice]}


def test_ap_of_layers():
    """Duplicates cost the layer that has them; NMS takes them away, and nothing else."""
    targets = [
        {"labels": torch.tensor([0, 0]),
         "boxes": torch.tensor([[0.2, 0.3, 0.2, 0.4], [0.7, 0.6, 0.3, 0.3]])},
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.5]])},
    ]  # fmt: skip
    samples = [{"height": 100, "width": 160}, {"height": 90, "width": 60}]
    values = ap_of_layers(Layers(targets), samples, targets)
    np.testing.assert_allclose(values[1], [100, 100], atol=1e-6)
    assert values[0, 1] == pytest.approx(100, abs=1e-6)
    # Of class 0, the second box is found with a precision of 2 in 3; 50 of 101 recalls need it.
    of_class = 100 * (51 + 50 * 2 / 3) / 101
    assert values[0, 0] == pytest.approx((of_class + 100) / 2, abs=0.01)
    lone = [{"labels": t["labels"][:0], "boxes": t["boxes"][:0]} for t in targets]
    assert np.isnan(ap_of_layers(Layers(targets), samples, lone)).all()
    drawn = layer_ap(np.array([[40.0, 80.0], [np.nan, np.nan]]), 2)
    lengths = [(drawn == color).all(-1).sum(1).max() for color in COLORS]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=20) and is_picture(drawn)
