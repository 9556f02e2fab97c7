"""What a model cannot work with is refused, by the name of the image."""

import math

import pytest
import torch

from detectron2_ddetr import DeformableDETR
from detectron2_ddetr.errors import InputError, NonFiniteError
from detectron2_ddetr.toolbox import Boxes, Instances

from .test_meta_arch import MEAN, ONE_BOX, STD, fixed_model, sample

#: Three classes, three channels.
MODEL = fixed_model(*ONE_BOX)


def batch(**changes):
    """Two samples, of which the second has a name and is changed."""
    good = sample(40, 50, seed=1)
    return [sample(30, 20), {**good, "file_name": "folder/cat.jpg", **changes}]


def instances(boxes=((3.0, 5.0, 20.0, 11.0),), classes=None, size=(40, 50)):
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    result.gt_classes = torch.tensor([0] * len(boxes)) if classes is None else classes
    return result


def without(name):
    result = Instances((40, 50))
    for key, value in instances().get_fields().items():
        if key != name:
            setattr(result, key, value)
    return result


def pixels(value):
    image = torch.zeros(3, 40, 50)
    image[1, 2, 3] = value
    return image


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": torch.zeros(1, 40, 50)}, r"must be \(3, height, width\), got \(1, 40, 50\)"),
        ({"image": torch.zeros(4, 40, 50)}, r"got \(4, 40, 50\)"),
        ({"image": torch.zeros(40, 50, 3)}, r"got \(40, 50, 3\)"),
        ({"image": torch.zeros(40, 50)}, r"got \(40, 50\)"),
        ({"image": torch.zeros(3, 0, 50)}, r"got \(3, 0, 50\)"),
        ({"image": torch.zeros(3, 40, 50).numpy()}, "a tensor 'image'"),
        ({"image": None}, "a tensor 'image'"),
        ({"image": pixels(math.nan)}, "NaN or infinite"),
        ({"image": pixels(-math.inf)}, "NaN or infinite"),
        ({"height": 0}, "'height', .* must be a positive number, got 0"),
        ({"width": math.nan}, "'width', .* must be a positive number, got nan"),
        ({"width": "50"}, "'width', .* must be a positive number, got '50'"),
    ],
)
def test_images(training, change, words):
    with pytest.raises(InputError, match=rf"image 1 of the batch \(folder/cat.jpg\): .*{words}"):
        MODEL.train(training)(batch(**change))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inputs", [[], None, sample(40, 50), torch.zeros(1, 3, 40, 50), [None]])
def test_no_batch(training, inputs):
    with pytest.raises(InputError, match="must be a (list of one dict per image|dict with)"):
        MODEL.train(training)(inputs)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "training needs 'instances'"),
        (without("gt_boxes"), "must have gt_boxes"),
        (without("gt_classes"), "must have gt_boxes"),
        (instances(size=(80, 100)), r"\(80, 100\), but 'image' has \(40, 50\)"),
        (instances(size=(50, 40)), r"\(50, 40\), but 'image' has \(40, 50\)"),
        (instances(classes=torch.tensor([-1])), "label -1 .* MODEL.DETR.NUM_CLASSES"),
        (instances(classes=torch.tensor([3])), "label 3 .* MODEL.DETR.NUM_CLASSES"),
        (instances(classes=torch.tensor([0.0])), "int64, got torch.float32"),
        (instances([(20.0, 5.0, 3.0, 11.0)]), "box 0 is .*negative size"),
        (instances([(0.0, 0.0, 1.0, 1.0), (300.0, 500.0, 400.0, 600.0)]), "box 1 .* 50 wide and"),
        (instances([(math.nan, 5.0, 20.0, 11.0)]), "box 0 is .*nan"),
    ],
)
def test_ground_truth(value, words):
    with pytest.raises(InputError, match=rf"image 1 of the batch \(folder/cat.jpg\): .*{words}"):
        MODEL.train()(batch(instances=value))


def test_missing_instances():
    samples = batch()
    del samples[0]["instances"]
    with pytest.raises(InputError, match="image 0 of the batch: training needs"):
        MODEL.train()(samples)
    assert len(MODEL.eval()(samples)) == 2


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["pred_logits", "pred_boxes"])
def test_detections_that_are_not_finite(monkeypatch, field, fault):
    """Of the second image; its name is said."""
    outputs = {"pred_logits": torch.zeros(2, 4, 3), "pred_boxes": torch.full((2, 4, 4), 0.5)}
    monkeypatch.setattr(MODEL, "network_outputs", lambda images: outputs)
    assert len(MODEL.eval()(batch())) == 2
    outputs[field][1, 2] = fault
    if field == "pred_logits" and fault == math.inf:  # whose score is 1
        return
    with pytest.raises(NonFiniteError, match="image 1 .*cat.jpg.*NaN or infinite.*earlier"):
        MODEL(batch())


def test_what_is_sound():
    """A box without area, one that sticks out of the image; pixels of any dtype."""
    boxes = [(3.0, 5.0, 3.0, 5.0), (0.0, 0.0, 50.0, 40.0), (-2.0, 30.0, 12.0, 42.0)]
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float64):
        samples = batch(instances=instances(boxes), image=pixels(7).to(dtype))
        losses = MODEL.train()(samples)
        assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_features": ["fine", "p7"]}, "in_features .*TinyBackbone.*coarse.*p7"),
        ({"in_features": "fine"}, "must be a list"),
        ({"in_features": []}, "must be a list"),
        ({"in_features": ["coarse", "fine"]}, "from high to low resolution.*strides .12, 6"),
        ({"in_features": ["fine", "fine"]}, "each once"),
        ({"pixel_std": [1.0, 0.0, 1.0]}, "pixel_std above 0"),
        ({"pixel_std": STD[:2]}, "a number for each channel"),
        ({"num_detections": 0}, "at least 1, got 0"),
    ],
)
def test_arguments(change, words):
    arguments = {
        "backbone": MODEL.backbone,
        "head": MODEL.head,
        "criterion": MODEL.criterion,
        "in_features": ["fine", "coarse"],
        "pixel_mean": MEAN,
        "pixel_std": STD,
    }
    DeformableDETR(**arguments)
    with pytest.raises(InputError, match=words):
        DeformableDETR(**{**arguments, **change})
