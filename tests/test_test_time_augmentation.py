"""Test-time augmentation: what the views are, how their detections become one set, and by whom."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import detectron2_ddetr
from detectron2_ddetr import Predictor, Trainer, load_config
from detectron2_ddetr.data.augmentation import ResizeShortSide
from detectron2_ddetr.engine.test_time_augmentation import DetectorWithTTA
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.modeling.fusion import fuse_views
from detectron2_ddetr.toolbox import Boxes, Instances, build_model

from .conftest import CONFIGS, small_cfg
from .test_evaluator import register  # noqa: F401  (a fixture)
from .test_predictor import CELLS, NAMES, assert_same, run  # noqa: F401  (a fixture)

AUG = "TEST.AUG."
ENABLED = [AUG + "ENABLED", True]
#: The only view is what the model sees without: sizes of the fixture `run`.
IDENTITY = [*ENABLED, AUG + "MIN_SIZES", (96,), AUG + "MAX_SIZE", 160, AUG + "FLIP", False]


def fused(*views):
    """Each view a list of (box, score, label)."""
    rows = [(*row, number) for number, view in enumerate(views) for row in view]
    boxes, scores, labels, numbers = (torch.tensor(x) for x in zip(*rows))
    return fuse_views(boxes.float(), scores.float(), labels, numbers, len(views))


def test_an_object_is_the_weighted_mean_of_what_the_views_say():
    """By hand: one object of both views, one of the second alone, one of another class."""
    first = [([0, 0, 10, 10], 0.9, 0), ([50, 50, 70, 80], 0.2, 1)]
    second = [([2, 0, 12, 10], 0.3, 0), ([50, 50, 70, 80], 0.6, 2), ([100, 0, 110, 10], 0.5, 0)]
    boxes, scores, labels = fused(first, second)
    assert_close(scores, torch.tensor([0.6, 0.3, 0.25, 0.1]))
    assert labels.tolist() == [0, 2, 0, 1]
    assert_close(boxes[0], torch.tensor([0.5, 0, 10.5, 10]))  # 3/4 of one, 1/4 of the other
    assert_close(boxes[1:3], torch.tensor([[50.0, 50, 70, 80], [100, 0, 110, 10]]))


def test_detections_of_one_view_are_never_one_object():
    """Two that nearly cover each other stay two, also where another view sees both of them."""
    near = [([0, 0, 10, 10], 0.9, 0), ([1, 0, 11, 10], 0.8, 0)]
    boxes, scores, _ = fused(near)
    assert_close(boxes, torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]]), rtol=0, atol=0)
    assert_close(scores, torch.tensor([0.9, 0.8]), rtol=0, atol=0)
    moved = [([0, 1, 10, 11], 0.5, 0), ([1, 1, 11, 11], 0.4, 0)]
    boxes, scores, _ = fused(near, moved)
    assert_close(scores, torch.tensor([0.7, 0.6]))
    assert boxes[0, 0] == 0 and boxes[1, 0] == 1  # each with the one that is most like it


def test_one_view_is_left_as_it_is():
    """Whatever boxes and scores, to the bit, and in the order of the scores."""
    generator = torch.Generator().manual_seed(0)
    boxes = 500 * torch.rand(300, 4, generator=generator).cumsum(1)
    scores = torch.rand(300, generator=generator).sort(descending=True)[0]
    scores[-2:] = 0.0
    labels = torch.randint(3, (300,), generator=generator)
    found = fuse_views(boxes, scores, labels, torch.zeros(300, dtype=torch.int64), 1)
    for x, expected in zip(found, (boxes, scores, labels)):
        assert_close(x, expected, rtol=0, atol=0)


def test_nothing_found():
    empty = torch.zeros(0)
    boxes, scores, labels = fuse_views(empty.view(0, 4), empty, empty.long(), empty.long(), 3)
    assert boxes.shape == (0, 4) and len(scores) == len(labels) == 0


class White(nn.Module):
    """Finds the box of all that is white, if anything is, and remembers the sizes of the images."""

    def forward(self, batched_inputs):
        self.sizes = getattr(self, "sizes", []) + [tuple(x["image"].shape) for x in batched_inputs]
        return [{"instances": self.find(**x)} for x in batched_inputs]

    def find(self, image, height, width, **_):
        rows, columns = (image[0] > 127).nonzero().unbind(1)
        y, x = height / image.shape[1], width / image.shape[2]
        found = Instances((height, width))
        boxes = torch.zeros(0, 4)
        if len(rows):
            low, high = (columns.min() * x, rows.min() * y), (columns.max() + 1, rows.max() + 1)
            boxes = torch.tensor([[*low, high[0] * x, high[1] * y]])
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.full((len(boxes),), 0.75)
        found.pred_classes = torch.full((len(boxes),), 2)
        return found


def test_views_and_their_way_back():
    """An object near a corner of an oblong image lies where it lay, in px of the size wanted."""
    image = torch.zeros(3, 120, 200, dtype=torch.uint8)
    image[:, 10:40, 20:90] = 255
    resizes = [ResizeShortSide((size,), 400) for size in (60, 120, 240)]
    model = DetectorWithTTA(model=White(), resizes=resizes)
    whole, wide = model([{"image": image}, {"image": image, "height": 60, "width": 300}])
    sizes = [(3, 60, 100)] * 4 + [(3, 120, 200)] * 4 + [(3, 240, 400)] * 4  # 2 images, 2 views
    assert model.model.sizes == sizes
    for result, (height, width) in ((whole, (120, 200)), (wide, (60, 300))):
        found = result["instances"]
        expected = torch.tensor([[20.0, 10, 90, 40]]) * torch.tensor(
            [width / 200, height / 120] * 2
        )
        assert found.image_size == (height, width) and found.pred_classes.tolist() == [2]
        assert_close(found.pred_boxes.tensor, expected, rtol=0, atol=1.0)
        assert_close(found.scores, torch.tensor([0.75]))


def detector(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def test_a_mirrored_image_gives_mirrored_boxes():
    """Of the plain model it does not."""
    cfg = small_cfg(*ENABLED, AUG + "MIN_SIZES", (64, 96), "MODEL.BACKBONE.FREEZE_AT", 0)
    plain = detector(cfg)
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (3, 80, 112), generator=generator, dtype=torch.uint8)

    def difference(model):
        with torch.no_grad():
            found, other = (model([{"image": x}])[0]["instances"] for x in (image, image.flip(2)))
        boxes = other.pred_boxes.tensor
        back = torch.stack((112 - boxes[:, 2], boxes[:, 1], 112 - boxes[:, 0], boxes[:, 3]), dim=1)
        assert len(found) == len(other) > 5
        return (found.pred_boxes.tensor - back).abs().max(), (found.scores - other.scores).abs()

    boxes, scores = difference(DetectorWithTTA(cfg, plain))
    assert boxes < 1e-3 and scores.max() < 1e-6
    assert difference(plain)[0] > 1


def test_no_more_detections_than_the_config_says():
    cfg = small_cfg(*ENABLED, AUG + "MIN_SIZES", (64, 80), "TEST.DETECTIONS_PER_IMAGE", 7)
    model = DetectorWithTTA(cfg, detector(cfg))
    (result,) = model([{"image": torch.zeros(3, 64, 80, dtype=torch.uint8)}])
    assert len(result["instances"]) == 7


def test_the_identity_is_the_plain_model(run):  # noqa: F811
    """To the bit, through all that reads and resizes an image."""
    plain, augmented = Predictor.from_run(run), Predictor.from_run(run, opts=IDENTITY)
    assert isinstance(augmented.model, DetectorWithTTA)
    for found, expected in zip(augmented(CELLS[:2]), plain(CELLS[:2])):
        assert_same(found, expected)
    other = Predictor.from_run(run, opts=[*IDENTITY[:-1], True])(CELLS[0])
    assert not torch.equal(other.scores, plain(CELLS[0]).scores)


def test_an_evaluation_goes_by_the_config(register, tmp_path):  # noqa: F811
    """Images reach it as they are in the file; the model sees each in all views."""
    images = [{"id": 1, "file_name": CELLS[0], "height": 480, "width": 640}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 99, 99]}]
    annotations[0] |= {"area": 9801, "iscrowd": 0}
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    register("augmented", json.loads(json.dumps(content)))
    opts = [*ENABLED, AUG + "MIN_SIZES", (64, 80), "DATASETS.TEST", ("augmented",)]
    cfg = small_cfg(*opts, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path))
    (batch,) = Trainer.build_test_loader(cfg, "augmented")
    assert batch[0]["image"].shape == (3, 480, 640)
    model, seen = detector(cfg), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"].shape[1]))
    results = Trainer.test(cfg, model)
    assert seen == [64, 64, 80, 80] and "AP" in results["bbox"]


def test_what_cannot_be():
    base = str(CONFIGS / "quick_start.yaml")
    with pytest.raises(InputError, match="TEST.AUG.ENABLED needs a size in TEST.AUG.MIN_SIZES"):
        load_config(base, [*ENABLED, AUG + "MIN_SIZES", ()])
    model = DetectorWithTTA(model=White(), resizes=[ResizeShortSide((60,), 100)])
    with pytest.raises(InputError, match=r"a\.png.* must be uint8 .*, got torch.float32"):
        model([{"image": torch.zeros(3, 8, 8), "file_name": "a.png"}])


def test_it_is_public():
    assert detectron2_ddetr.DetectorWithTTA is DetectorWithTTA
