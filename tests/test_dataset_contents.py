"""What is found in the data sets of a config before anything is built."""

import logging

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr.data import dataset_contents
from detectron2_ddetr.data.dataset_contents import check_contents
from detectron2_ddetr.engine import run
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import DatasetCatalog, MetadataCatalog

from .conftest import small_cfg


def records(folder, prefix, boxes_per_image, deep=()):
    """An image file of 8 x 6 px for each number of boxes; those in `deep` have 16 bits a pixel."""
    found = []
    for i, boxes in enumerate(boxes_per_image):
        path = folder / f"{prefix}{i}.png"
        Image.fromarray(np.zeros((6, 8), np.uint16 if i in deep else np.uint8)).save(path)
        annotation = {"bbox": [1, 1, 2, 2], "bbox_mode": 0, "category_id": 0}
        record = {"file_name": str(path), "image_id": f"{prefix}{i}", "width": 8, "height": 6}
        record["annotations"] = [dict(annotation) for _ in range(boxes)]
        found.append(record)
    return found


@pytest.fixture
def config():
    """A config of data sets of dataset dicts, registered for the length of a test."""
    names = []

    def config(train, test, *opts):
        for name, content in (("train", train), ("test", test)):
            DatasetCatalog.register(name, lambda content=content: content)
            MetadataCatalog.get(name).set(thing_classes=["a"])
            names.append(name)
        return small_cfg(
            *("DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("test",)),
            *("MODEL.DETR.NUM_CLASSES", 1, *opts),
        )

    yield config
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


class Arguments:
    dataset, opts = [], []


@pytest.mark.parametrize("eval_only", [False, True])
def test_faults_of_all_data_sets_come_together(tmp_path, config, eval_only):
    cfg = config(
        records(tmp_path, "a", [1, 1, 1], deep=[0, 2]), records(tmp_path, "b", [1, 1], deep=[1])
    )
    with pytest.raises(InputError) as caught:
        run.use_datasets(cfg, Arguments, eval_only=eval_only)
    text = str(caught.value)
    assert "data set 'test': 1 of 2 images cannot be used" in text
    assert ("data set 'train': 2 of 3 images cannot be used" in text) is not eval_only
    assert "image b1 (" in text and ("image a2 (" in text) is not eval_only


def test_images_that_training_leaves_out_are_not_read(tmp_path, config):
    train = records(tmp_path, "a", [0, 1, 1])
    train[2]["annotations"][0]["iscrowd"] = 1
    for record in (train[0], train[2]):
        record["file_name"] += ".gone"
    cfg = config(train, records(tmp_path, "b", [0]), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", True)
    check_contents(cfg)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    with pytest.raises(InputError, match="data set 'train': 2 of 3 .*\n.*does not exist"):
        check_contents(cfg)


def test_one_process_of_a_machine_reads(tmp_path, config, monkeypatch):
    cfg = config(records(tmp_path, "a", [1], deep=[0]), [])
    monkeypatch.setattr(dataset_contents.comm, "get_local_rank", lambda: 1)
    check_contents(cfg)


def crowding(caplog, cfg):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="detectron2_ddetr"):
        check_contents(cfg)
    return [text for text in caplog.messages if "have more than" in text]


def test_crowded_images_are_counted(tmp_path, config, caplog):
    limits = ("MODEL.DETR.NUM_QUERIES", 20, "TEST.DETECTIONS_PER_IMAGE", 10)
    cfg = config(
        records(tmp_path, "a", [300, 20, 21, 0]), records(tmp_path, "b", [300, 20, 21, 0]), *limits
    )
    train, test = crowding(caplog, cfg)
    assert train.startswith("data set 'train': 2 of 4 images have more than MODEL.DETR.NUM_QUERIES")
    assert "NUM_QUERIES 20 boxes (the most: 300)" in train and "DETECTIONS" not in train
    assert "2 of 4 images have more than MODEL.DETR.NUM_QUERIES 20 and 3 of 4 images have" in test
    assert "more than TEST.DETECTIONS_PER_IMAGE 10 boxes" in test


def test_nothing_is_said_where_the_limits_suffice(tmp_path, config, caplog):
    limits = ("MODEL.DETR.NUM_QUERIES", 20, "TEST.DETECTIONS_PER_IMAGE", 10)
    test = records(tmp_path, "b", [0, 10, 11])
    test[2]["annotations"][4]["iscrowd"] = 1
    assert crowding(caplog, config(records(tmp_path, "a", [20, 11]), test, *limits)) == []
