"""The picture of training images shows what the model gets."""

import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr import cli, load_config
from detectron2_ddetr.data.dataset_mapper import DeformableDETRDatasetMapper
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import BoxMode
from detectron2_ddetr.visualization import training_images
from detectron2_ddetr.visualization.drawing import MARGIN, class_color
from detectron2_ddetr.visualization.training_images import CELL, draw_training_images

from .conftest import CONFIGS, DATA
from .test_cli import loggers  # noqa: F401  (a fixture)
from .test_training import run, shapes  # noqa: F401

#: Of a rectangle in an image of 160 x 100 px, and its colour, which is that of no class.
BOX, COLOUR = (20, 10, 50, 60), (255, 255, 0)


def record(path, width=160, height=100):
    image = np.full((height, width, 3), 90, np.uint8)
    x, y, w, h = BOX
    image[y : y + h, x : x + w] = COLOUR
    Image.fromarray(image).save(path)
    box = {"bbox": list(BOX), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    return {"file_name": str(path), "image_id": 7, "annotations": [box]}


def config(*opts):
    return load_config(str(CONFIGS / "quick_start.yaml"), opts)


def read(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def bounds(mask):
    """x1, y1, x2, y2 of what is True, the ends included."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize("crop", [False, True])
def test_the_object_lies_in_its_box(tmp_path, flip, crop, image_format, monkeypatch):
    """Drawn over it, after every change of the image; the rest of the image is as it was."""
    monkeypatch.setattr(training_images, "NUM_IMAGES", 4)
    cfg = config(
        "INPUT.FORMAT", image_format, "INPUT.RANDOM_FLIP", flip, "INPUT.CROP.ENABLED", crop
    )
    records = [record(tmp_path / f"{i}.png") for i in range(4)]
    draw_training_images(cfg, records, ["", ""], str(tmp_path / "a.png"))
    picture = read(tmp_path / "a.png").astype(int)
    seen = set()
    for left in range(MARGIN, picture.shape[1] - CELL, CELL + MARGIN):
        cell = picture[70:, left : left + CELL]
        inside = bounds(np.abs(cell - COLOUR).max(axis=2) < 60)
        outline = bounds((cell == class_color(1)).all(axis=2))
        assert np.abs(outline - inside).max() <= 4
        seen.add(tuple(outline // 20))
    # A flip is drawn by lot; without one, and without a crop, all are the same.
    assert (len(seen) > 1) == (flip != "none" or crop)


def test_boxes_are_the_mappers(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        training_images,
        "draw_boxes",
        lambda image, boxes, labels, **_: drawn.append((image.shape, boxes, labels)) or image,
    )
    cfg = config()
    content = record(tmp_path / "a.png")
    draw_training_images(cfg, [content], ["a", "b"], str(tmp_path / "a.jpg"))
    (height, width, _), boxes, labels = drawn[0]
    sample = DeformableDETRDatasetMapper(cfg, is_train=True)({**content, "draw": (0, 0)})
    # 160 x 100 becomes 384 x 240.
    assert sample["image"].shape == (3, 240, 384) and (width, height) == (CELL, CELL * 240 // 384)
    np.testing.assert_allclose(boxes, sample["instances"].gt_boxes.tensor * (CELL / 384), rtol=1e-6)
    assert labels == [1]


def test_it_is_always_the_same_and_no_draw_of_the_training(tmp_path):
    """Whatever numpy's generator stands at, which stays there."""
    pictures = []
    for seed in (1, 2):
        np.random.seed(seed)
        expected = np.random.random()
        np.random.seed(seed)
        records = [record(tmp_path / f"{i}.png") for i in range(4)]
        draw_training_images(config(), records, ["a", "b"], str(tmp_path / "picture.png"))
        assert np.random.random() == expected
        pictures.append((tmp_path / "picture.png").read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (900, 3), (40, 30)])
def test_any_number_and_shape_of_images(tmp_path, shape):
    content = []
    for i in range(6):
        Image.new("RGB", shape).save(tmp_path / f"{'long' * 30}{i}.png")
        content.append({"file_name": str(tmp_path / f"{'long' * 30}{i}.png"), "annotations": []})
    for number in (1, 5, 6):
        draw_training_images(config(), content[:number], [], str(tmp_path / "a.jpg"))
        assert read(tmp_path / "a.jpg").shape[1] == 4 * (CELL + 14) + 14


def test_what_cannot_be_drawn(tmp_path):
    content = [record(tmp_path / "a.png")]
    with pytest.raises(InputError, match="no image to draw"):
        draw_training_images(config(), [], [], str(tmp_path / "b.jpg"))
    with pytest.raises(InputError, match="a.odd: no kind of picture ends so; write to a .jpg"):
        draw_training_images(config(), content, [], str(tmp_path / "a.odd"))
    with pytest.raises(InputError, match="b.jpg: cannot be written"):
        draw_training_images(config(), content, [], str(tmp_path / "no" / "b.jpg"))


def test_a_damaged_image_is_named_and_left_out(tmp_path, caplog, monkeypatch):
    """Behind its header: what stops a training stops it there, and not at the picture."""
    logger = logging.getLogger("pictures")  # not the package's, which commands take from pytest
    monkeypatch.setattr(training_images, "logger", logger)
    content = [record(tmp_path / f"{i}.png") for i in range(3)]
    damaged = tmp_path / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    draw_training_images(config(), content, [], str(tmp_path / "a.jpg"))
    assert read(tmp_path / "a.jpg").shape[1] == 4 * (CELL + 14) + 14
    (warning,) = [record.message for record in caplog.records if record.name == "pictures"]
    assert "a.jpg is drawn without image 7" in warning and "1.png" in warning
    with pytest.raises(InputError, match="none of 1 images can be drawn"):
        draw_training_images(config(), content[1:2], [], str(tmp_path / "a.jpg"))


def test_by_the_command(tmp_path):
    path = tmp_path / "cells.jpg"
    cli.main(["check", str(DATA), "--config-file", "quick_start.yaml", "--picture", str(path)])
    picture = read(path)
    # Three rows of four images of 320 x 240, with their lines of text.
    assert picture.shape[1] == 4 * (CELL + 14) + 14
    assert 3 * CELL * 240 // 320 < picture.shape[0] < 3 * (CELL * 240 // 320 + 80) + 100
    with pytest.raises(SystemExit, match="does not exist"):
        cli.main(["check", str(DATA), "--picture", str(tmp_path / "no" / "a.jpg")])


def test_at_the_start_of_a_training(shapes, tmp_path):  # noqa: F811
    said = run(shapes, tmp_path / "run", opts=["SOLVER.MAX_ITER", 1])
    assert read(tmp_path / "run" / "train_images.jpg").shape[1] == 4 * (CELL + 14) + 14
    assert "data set shapes: 6 images, 12 boxes" in said
    words = ("box sizes", "Starting training", "train_images.jpg", "best so far")
    places = [said.index(word) for word in words]
    assert places == sorted(places)
    run(shapes, tmp_path / "run", "--eval-only", "--resume")
