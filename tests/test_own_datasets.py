"""Data sets that a user's own function returns: what is wrong with a record of one is named."""

import pytest

from detectron2_ddetr import check_datasets
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import BoxMode, DatasetCatalog, MetadataCatalog

from .test_coco_dataset import catalogs, config  # noqa: F401  (a fixture)


def own(**changes):
    annotation = {"category_id": 1, "bbox": [1, 2, 30, 40], "bbox_mode": BoxMode.XYXY_ABS}
    annotation = {k: v for k, v in {**annotation, **changes}.items() if v is not ...}
    return [{"file_name": "x.png", "image_id": 7, "annotations": [annotation]}]


OWN = {
    "class -1": (own(category_id=-1), r"category_id must be an integer from 0 to 2 \(a, b, c\)"),
    "class K": (own(category_id=3), "from 0 to 2 .*got 3; number the classes from 0 on"),
    "class of text": (own(category_id="1"), "got '1'"),
    "no class": (own(category_id=...), "got None"),
    "class 1.0": (own(category_id=1.0), "got 1.0"),
    "no box": (own(bbox=...), "bbox must be 4 finite numbers, got None"),
    "NaN": (own(bbox=[1, 2, 3, float("nan")]), "bbox must be 4 finite numbers"),
    "no mode": (own(bbox_mode=...), "bbox_mode must be BoxMode.XYXY_ABS or XYWH_ABS, got None"),
    "turned corners": (own(bbox=[30, 2, 1, 40]), "has a negative width or height"),
    "no annotations": ([{"file_name": "x.png"}], "key 'annotations' is missing"),
    "no file": ([{"annotations": []}], "item 0: it must be a dict with 'file_name'"),
    "nothing": ([], "must return a list of dicts, not empty"),
    "a dict": ({}, "must return a list of dicts"),
}


@pytest.mark.parametrize("kind", OWN)
def test_data_sets_of_a_function(kind):
    dicts, message = OWN[kind]
    DatasetCatalog.register("own", lambda: dicts)
    MetadataCatalog.get("own").set(thing_classes=["a", "b", "c"])
    with pytest.raises(InputError, match=message) as error:
        check_datasets(config(["own"], [], 3))
    assert "data set 'own'" in str(error.value)
    DatasetCatalog.remove("own")
    DatasetCatalog.register("own", own)
    check_datasets(config(["own"], ["own"], 3))


def test_classes_of_functions_are_compared_too():
    for name, classes in (("own_a", ["a", "b"]), ("own_b", ["b", "a"])):
        DatasetCatalog.register(name, own)
        MetadataCatalog.get(name).set(thing_classes=classes)
    check_datasets(config(["own_a"], ["own_a"], 2))
    with pytest.raises(InputError, match="'own_b' has classes b, a, data set 'own_a' has a, b"):
        check_datasets(config(["own_a"], ["own_b"], 2))
