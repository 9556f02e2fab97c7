"""Boxes that are few pixels once images are resized are pointed out."""

import logging

import numpy as np
import pytest

from detectron2_ddetr.data.box_columns import boxes_of
from detectron2_ddetr.data.dataset_contents import check_contents
from detectron2_ddetr.data.small_boxes import Resizing, warning_of_small

from .test_dataset_contents import config, records  # noqa: F401

HALF = Resizing("INPUT.MIN_SIZE_TEST", 240, 400)  # of 640 x 480


def warned(boxes, size=(640, 480), resizing=HALF, missing=0):
    """Of (width, height) of boxes in one image, after images that cannot be used."""
    annotations = [
        {"category_id": 0, "bbox": [3, 5, *box], "bbox_mode": 1, "iscrowd": 0} for box in boxes
    ]
    records = [{"annotations": annotations}] * (missing + 1)
    return warning_of_small("d", boxes_of(records), np.array([(0, 0)] * missing + [size]), resizing)


@pytest.mark.parametrize("size", [(640, 480), (480, 640)])
@pytest.mark.parametrize("box", [(30, 30), (60, 15), (15, 60)])
def test_side_after_resizing(size, box):
    """30 px become 15, whether the image lies or stands; by area, whatever the shape."""
    text = warned([box] * 3, size)
    assert "data set 'd': in images of INPUT.MIN_SIZE_TEST 240, 3 of 3 boxes are smaller" in text
    assert "median side 15 px" in text
    assert not warned([(box[0] * 17 / 15, box[1] * 17 / 15)] * 3, size)


def test_the_long_side_is_kept_to_the_most():
    """1000 x 200 becomes 400 x 80, not 1200 x 240."""
    assert "median side 14 px" in warned([(36, 36)], (1000, 200))
    assert not warned([(36, 36)], (250, 200))


def test_images_as_they_are():
    unresized = HALF._replace(short=0)
    assert not warned([(16, 16)], resizing=unresized)
    assert "in images of their own size, 1 of 1 boxes " in warned([(15, 15)], resizing=unresized)


def test_half_of_the_boxes_are_not_most():
    large, small = (100, 100), (10, 10)
    assert not warned([large, small]) and not warned([])
    assert "2 of 3 boxes are smaller than 16 x 16 px" in warned([large, small, small])


def test_images_that_cannot_be_used_do_not_count():
    assert "1 of 1 boxes " in warned([(10, 10)], missing=2)


def test_each_set_by_its_own_keys(tmp_path, caplog, config):  # noqa: F811
    """1 px becomes 15 with the largest of the sides of training, 17 in evaluation."""
    sizes = ("INPUT.MIN_SIZE_TRAIN", (24, 90), "INPUT.MIN_SIZE_TEST", 102)
    sizes += ("INPUT.MAX_SIZE_TRAIN", 200, "INPUT.MAX_SIZE_TEST", 200)
    cfg = config(records(tmp_path, "a", [1, 2]), records(tmp_path, "b", [1]), *sizes)
    with caplog.at_level(logging.WARNING, logger="detectron2_ddetr"):
        check_contents(cfg)
    found = [text for text in caplog.messages if "in images of" in text]
    assert len(found) == 1 and "'train': in images of INPUT.MIN_SIZE_TRAIN 90, 3 of 3" in found[0]
