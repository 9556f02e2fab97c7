"""Pictures of predictions: where boxes and labels go, and which images are drawn."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr.toolbox import Boxes, BoxMode, Instances
from detectron2_ddetr.visualization.drawing import class_color, draw_boxes
from detectron2_ddetr.visualization.predictions import predictions_beside_ground_truth


def test_box_is_outlined_in_the_color_of_its_class():
    image = np.full((300, 400, 3), 128, dtype=np.uint8)
    drawn = draw_boxes(image, np.array([[40.0, 100.0, 360.0, 220.0]]), [1])
    assert (image == 128).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    red, green, blue = class_color(1)
    for x, y in [(40, 200), (360, 200), (200, 220), (200, 100)]:  # left, right, bottom, top
        assert drawn[y, x].tolist() == [red, green, blue]
    changed = (drawn != image).any(axis=2)
    assert not changed[105:215, 45:355].any()  # inside
    assert not changed[230:].any() and not changed[:, 370:].any()  # below, right


def test_neighbouring_classes_have_different_colors():
    colors = np.array([class_color(label) for label in range(12)])
    distances = np.abs(colors[:, None] - colors[None]).sum(-1)
    assert distances[~np.eye(12, dtype=bool)].min() > 50
    assert class_color(3) == class_color(3)


def test_score_and_name_make_the_label_longer():
    image = np.full((300, 400, 3), 128, dtype=np.uint8)
    box = np.array([[100.0, 100.0, 300.0, 200.0]])

    def width(**options):
        label = (draw_boxes(image, box, [0], **options) != image).any(axis=2)[:96]
        return label.any(axis=0).sum()

    assert width() < width(class_names=["cat"]) < width(scores=[0.5], class_names=["cat"])


def test_labels_do_not_cover_each_other():
    """Four boxes with the same corner: without avoidance, one label would be seen."""
    image = np.full((400, 500, 3), 128, dtype=np.uint8)
    boxes = np.array([[100.0, 100.0, 150 + 60 * i, 140 + 50 * i] for i in range(4)])
    areas = []
    for i in range(4):
        alone = draw_boxes(image, boxes[i : i + 1], [i])
        together = draw_boxes(image, boxes, [0, 1, 2, 3])
        near = [
            (np.abs(drawn.astype(int) - (0.15 * 128 + 0.85 * np.array(class_color(i)))) <= 1)
            .all(axis=2)
            .sum()
            for drawn in (alone, together)
        ]
        areas.append(near)
    assert all(together > 0.9 * alone > 0 for alone, together in areas)


@pytest.mark.parametrize("shape", [(20, 30, 3), (2000, 3000, 3)])
def test_any_image_size_and_boxes_at_the_border(shape):
    image = np.zeros(shape, dtype=np.uint8)
    height, width = shape[:2]
    boxes = np.array([[-5.0, -5.0, width + 9, height + 9], [width - 2, height - 2, width, height]])
    drawn = draw_boxes(image, boxes, [0, 1], [0.99, 0.5], class_names=["a long name", "b"])
    assert drawn.shape == shape and drawn.any()
    assert not draw_boxes(image, np.zeros((0, 4)), []).any()


def test_mosaic(tmp_path):
    images_with_results = []
    for name, (height, width) in {"wide.png": (60, 120), "high.png": (100, 50)}.items():
        Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / name)
        box = {"bbox": [5, 8, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        dataset_dict = {
            "file_name": str(tmp_path / name),
            "annotations": [{**box, "iscrowd": 0}, {**box, "bbox": [30, 1, 9, 9], "iscrowd": 1}],
        }
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor([[5.0, 8, 25, 38], [30, 1, 39, 10]]))
        instances.scores = torch.tensor([0.9, 0.3])
        instances.pred_classes = torch.tensor([1, 1])
        images_with_results.append((dataset_dict, instances))
    path = tmp_path / "pictures" / "mosaic.png"
    predictions_beside_ground_truth(
        images_with_results, ["cat", "dog"], str(path), score_threshold=0.5
    )
    mosaic = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    # Panels of 800 x 400 and 400 x 800 (width x height), two in a row, under their captions.
    assert 1600 < mosaic.shape[1] < 1700 and 1200 < mosaic.shape[0] < 1400

    def columns(color):
        return np.flatnonzero((mosaic == color).all(axis=2)[:480].any(axis=0))

    left, right = columns(class_color(0)), columns(class_color(1))
    # x 5..25 of 120 px are 33..167 of 800; the crowd region and the low score are not drawn.
    assert left.min() - 14 == pytest.approx(33, abs=4)
    assert left.max() - 14 == pytest.approx(167, abs=4)
    assert right.min() - 828 == pytest.approx(33, abs=4)
    assert right.max() - 828 == pytest.approx(167, abs=4)

    with pytest.raises(ValueError, match="no image to draw"):
        predictions_beside_ground_truth([], [], str(path), score_threshold=0.5)
