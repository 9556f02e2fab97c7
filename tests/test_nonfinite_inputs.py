"""Pixels and boxes that a step would not be finite with: refused before it, or blamed after it."""

import math

import pytest
import torch

from detectron2_ddetr import inputs
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.modeling import targets

from .nonfinite_cases import BOX, OTHER, batch, error_of, model_of, parts, step_of
from .test_meta_arch import sample


@pytest.fixture
def unchecked(monkeypatch):
    """As on a GPU, where numbers are not looked at before."""
    looks = [(inputs, "target_fault"), (targets, "target_fault")]
    for module, name in looks:
        monkeypatch.setattr(module, name, lambda *args: "")
    monkeypatch.setattr("detectron2_ddetr.meta_arch.check_images", lambda *args: None)


def with_boxes(*boxes):
    return batch(instances=sample(64, 96, boxes)["instances"])


def pixels(value):
    image = torch.full((3, 64, 96), 7.0)
    image[1, 2, 3] = value
    return batch(image=image)


BAD_BOXES = {
    "NaN": (3.0, math.nan, 20.0, 11.0),
    "infinite width": (3.0, 5.0, math.inf, 11.0),
    "not of the image": (3.0, 5.0, 1e38, 1e38),
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES)
def test_a_box_is_refused_before(box):
    step = step_of(model_of())
    with pytest.raises(InputError, match=r"image 2 of the batch \(c.jpg\): box 1 is .*must be"):
        step.update(with_boxes(BOX, box), lambda losses: None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_image_is_refused_before(bad):
    step = step_of(model_of())
    with pytest.raises(InputError, match=r"image 2 of the batch \(c.jpg\): .*infinite pixels"):
        step.update(pixels(bad), lambda losses: None)


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES)
def test_box(box, unchecked):
    """Where nobody has looked before."""
    error = error_of(model_of(), with_boxes(BOX, box))
    module, _, _, blamed = parts(error)
    assert module == "the model itself" or module == "criterion"
    assert blamed.startswith("a target: image 2 of the batch (c.jpg): box 1 is [")
    assert "annotation" in error.remedy


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels(bad, unchecked):
    error = error_of(model_of(), pixels(bad))
    module, _, images, blamed = parts(error)
    assert module == "the model itself" and images == "image 2 of the batch (c.jpg)"
    assert blamed == "the input: image 2 of the batch (c.jpg) has NaN or infinite pixels"
    assert "image" in error.remedy


def test_box_without_area(monkeypatch):
    """Sound for the criterion of this package, not for one that divides by the width."""
    model = model_of()

    def loss_boxes(boxes, target_boxes, num_boxes):
        return {"loss_bbox": (boxes / target_boxes).sum(), "loss_giou": boxes.sum()}

    monkeypatch.setattr(model.criterion, "loss_boxes", loss_boxes)
    error = error_of(model, with_boxes(OTHER, (3.0, 5.0, 3.0, 11.0)))
    module, _, _, blamed = parts(error)
    assert module == "criterion" and "annotation" in error.remedy
    assert blamed == (
        "a target: image 2 of the batch (c.jpg): box 1 is [3.0, 5.0, 3.0, 11.0], (x0, y0, x1, y1) "
        "in pixels, without area"
    )
