"""Outputs become Instances: in which frame, how many, in which order, and nothing else happens."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from .test_meta_arch import ONE_BOX, build, fixed_model, image


def test_boxes_are_in_the_frame_of_the_output():
    """Parity J74: fractions of the valid image times the size that is asked for."""
    model = fixed_model(*ONE_BOX)
    # (cx, cy, w, h) = (0.25, 0.5, 0.5, 0.2), so x from 0 to 0.5 and y from 0.4 to 0.6.
    with torch.no_grad():
        given, absent = model(
            [{"image": image(40, 80), "height": 400, "width": 160}, {"image": image(60, 20)}]
        )
    assert given["instances"].image_size == (400, 160)
    assert_close(given["instances"].pred_boxes.tensor[0], torch.tensor([0.0, 160.0, 80.0, 240.0]))
    assert absent["instances"].image_size == (60, 20)
    assert_close(absent["instances"].pred_boxes.tensor[0], torch.tensor([0.0, 24.0, 10.0, 36.0]))


def test_boxes_are_clipped_to_the_output():
    """Parity J75: the default of detectron2; what `inference` returns is not clipped."""
    model = fixed_model([[1.0]], [[0.9, 0.5, 0.4, 1.5]])
    with torch.no_grad():
        images = model.preprocess_image([{"image": image(40, 80)}])
        raw = model.inference(model.network_outputs(images), images.image_sizes)[0]
        clipped = model([{"image": image(40, 80)}])[0]["instances"]
    assert_close(raw.pred_boxes.tensor, torch.tensor([[56.0, -10.0, 88.0, 50.0]]))
    assert_close(clipped.pred_boxes.tensor, torch.tensor([[56.0, 0.0, 80.0, 40.0]]))


@pytest.mark.parametrize("num_detections", [4, 100])
def test_the_best_pairs_of_query_and_class(num_detections):
    """Parity J74, J76: flat over queries and classes; all of them where there are fewer."""
    logits = [[0.3, -1.0, 2.0], [1.5, 1.4, -3.0], [-0.5, 0.1, 0.2]]
    boxes = [[0.2, 0.3, 0.2, 0.1], [0.5, 0.5, 0.4, 0.6], [0.7, 0.6, 0.1, 0.3]]
    pairs = [(logits[query][label], query, label) for query in range(3) for label in range(3)]
    pairs = sorted(pairs, reverse=True)[:num_detections]
    with torch.no_grad():
        result = fixed_model(logits, boxes, num_detections)([{"image": image(50, 100)}])
    result = result[0]["instances"]
    assert len(result) == len(pairs) == min(num_detections, 9)
    assert result.pred_classes.tolist() == [label for _, _, label in pairs]
    for i, (value, query, _) in enumerate(pairs):
        cx, cy, w, h = boxes[query]
        box = [100 * (cx - w / 2), 50 * (cy - h / 2), 100 * (cx + w / 2), 50 * (cy + h / 2)]
        assert result.pred_boxes.tensor[i].tolist() == pytest.approx(box, abs=1e-3)
        assert result.scores[i].item() == pytest.approx(1 / (1 + np.exp(-value)))


def test_no_gradient_in_evaluation():
    """Under no_grad, as detectron2 evaluates, nothing is recorded; inputs are left alone."""
    model = build().eval()
    inputs = {"image": image(40, 60), "height": 20, "width": 30}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    original = inputs["image"].clone()
    with torch.no_grad():
        result = model([inputs])[0]["instances"]
    assert set(result.get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert result.scores.grad_fn is None and result.pred_boxes.tensor.grad_fn is None
    assert result.pred_classes.dtype == torch.int64
    assert (result.scores[:-1] >= result.scores[1:]).all() and len(result) <= 36
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(inputs["image"], original)
