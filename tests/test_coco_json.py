"""Each defect of an annotation file is named, with its remedy."""

import copy
import json
import logging

import pytest
from PIL import Image

from detectron2_ddetr import check_coco_json, check_datasets, register_coco_json
from detectron2_ddetr.errors import InputError, MissingFileError
from detectron2_ddetr.toolbox import CfgNode, DatasetCatalog, MetadataCatalog

SOUND = {
    "images": [
        {"id": 1, "file_name": "one.jpg", "width": 80, "height": 40},
        {"id": 2, "file_name": "two.jpg", "width": 80, "height": 40},
    ],
    "annotations": [
        # Inside only if x goes with the width and y with the height.
        {"id": 11, "image_id": 1, "category_id": 5, "bbox": [60, 10, 30, 20]},
        {"id": 12, "image_id": 1, "category_id": 3, "bbox": [-5, -5, 10, 10]},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}
for _annotation in SOUND["annotations"]:
    _annotation.update(iscrowd=0, area=0.9 * _annotation["bbox"][2] * _annotation["bbox"][3])


@pytest.fixture
def folder(tmp_path):
    for name in ("one.jpg", "two.jpg"):
        Image.new("RGB", (80, 40)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def content():
    return copy.deepcopy(SOUND)


def check(folder, content, **options):
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    check_coco_json(str(path), str(folder), **options)


def test_sound_file(folder, content, caplog):
    check(folder, content)
    check(folder, content, needs_annotations=False)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_missing_file(folder):
    with pytest.raises(MissingFileError, match="gone.json: the annotation file does not exist"):
        check_coco_json(str(folder / "gone.json"), str(folder))


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"images": [', "annotations.json: not valid json .*cut off"),
        ("[]", "must be an object with images, .* categories, got a list"),
        ('{"images": [{}], "categories": [{}]}', "key 'annotations' is missing .*'images'"),
        ('{"images": 1, "annotations": [], "categories": []}', "'images' must be a list of obj"),
        ('{"images": [1], "annotations": [], "categories": []}', "'images' must be a list of obj"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "'images' is empty"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "'categories' is empty"),
    ],
)
def test_not_coco(folder, text, message):
    with pytest.raises(InputError, match=message):
        check(folder, text)


@pytest.mark.parametrize(
    "kind, key, value, message",
    [
        ("images", "id", 2, "image at place 1: id 2 occurs more than once"),
        ("images", "id", None, "image at place 0: id must be an int or str, got None"),
        ("categories", "id", 5, "category at place 1: id 5 occurs more than once"),
        ("categories", "name", None, "category 3: it has no name"),
        ("annotations", "image_id", 9, r"annotation 11 of image 9 \(None\): image_id 9 is not in"),
        ("annotations", "image_id", [1], r"image_id \[1\] is not in 'images'"),
        ("annotations", "category_id", 4, r"11 of image 1 \(one.jpg\): category_id 4 is not in"),
        ("annotations", "bbox", [1, 2, 3], r"bbox must be 4 numbers .*got \[1, 2, 3\]"),
        ("annotations", "bbox", [1, 2, 3, "4"], "bbox must be 4 numbers"),
        ("annotations", "bbox", None, "bbox must be 4 numbers"),
        ("annotations", "bbox", [1, 2, float("nan"), 4], "annotation 11 .*NaN or infinite"),
        ("annotations", "bbox", [1, 2, 3, float("inf")], "NaN or infinite"),
        (
            "annotations",
            "bbox",
            [50, 20, -30, 10],
            r"bbox \[50, 20, -30, 10\] has a negative width",
        ),
        ("annotations", "bbox", [50, 20, 30, -10], "has a negative width or height"),
        # Outside an image of 80 x 40, inside one of 40 x 80.
        ("annotations", "bbox", [10, 45, 5, 5], r"lies wholly outside .*height = 80 x 40"),
        ("annotations", "bbox", [81, 5, 5, 5], "lies wholly outside"),
        ("annotations", "bbox", [-9, 5, 8, 5], "lies wholly outside"),
        ("annotations", "bbox", [9, -5, 8, 5], "lies wholly outside"),
        ("annotations", "iscrowd", 2, "iscrowd must be 0 or 1, got 2"),
        ("annotations", "ignore", 1, "'ignore' is not supported; use iscrowd"),
        ("images", "file_name", None, r"image 1 \(None\): file_name must be a string"),
        ("images", "file_name", "lost.jpg", r"image 1 \(lost.jpg\): no such file in .*image root"),
        ("images", "width", None, r"image 1 \(one.jpg\): width and height must be positive int"),
        ("images", "height", 0, "must be positive integers, got 80 and 0"),
    ],
)
def test_one_defect(folder, content, kind, key, value, message):
    content[kind][0][key] = value
    with pytest.raises(InputError, match=message) as caught:
        check(folder, content)
    assert str(caught.value).startswith(str(folder / "annotations.json"))


def test_usable_annotations(folder, content):
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [3, 4, 0, 5]
    check(folder, content, needs_annotations=False)
    with pytest.raises(InputError, match="annotations.json: no image has a usable annotation"):
        check(folder, content)


def test_boxes_without_area_are_logged(folder, content, caplog):
    content["annotations"][0]["bbox"] = [3, 4, 0, 5]
    content["annotations"].append({**content["annotations"][1], "id": 13, "bbox": [90, 4, 5, 0]})
    content["annotations"].append({**content["annotations"][1], "id": 14})
    content["annotations"][-1]["bbox"] = [7, 8, 9, 9]
    with caplog.at_level(logging.WARNING):
        check(folder, content)
    (record,) = caplog.records
    assert "2 boxes without width or height: training leaves them out" in record.message
    assert "annotation ids 11, 13" in record.message


def test_many_defects_are_counted(folder, content):
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 3, "bbox": [0, 0, -1, 1]} for i in range(1, 26)
    ]
    content["annotations"][7]["iscrowd"] = 3
    with pytest.raises(InputError) as caught:
        check(folder, content)
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("25 problems found") and len(lines) == 3
    assert lines[1].startswith("  1. annotation 8 of image 1 (one.jpg): iscrowd must be 0 or 1")
    assert lines[2].startswith("  2. annotation 1 of image 1 (one.jpg): bbox [0, 0, -1, 1]")
    assert "(23 more: annotation 2 of image 1 (one.jpg), annotation 3 of" in lines[2]


@pytest.fixture
def registered(folder, content):
    """A registered data set of two classes; forgotten after the test."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    register_coco_json("coco_json_test", str(path), str(folder))
    yield path
    DatasetCatalog.remove("coco_json_test")
    MetadataCatalog.pop("coco_json_test")


def config(num_classes, train=("coco_json_test",), test=("coco_json_test",)):
    cfg = CfgNode()
    cfg.DATASETS = CfgNode({"TRAIN": train, "TEST": test, "CLASS_NAMES": []})
    cfg.MODEL = CfgNode({"DETR": CfgNode({"NUM_CLASSES": num_classes})})
    return cfg


def test_register(registered, folder):
    assert len(DatasetCatalog.get("coco_json_test")) == 2
    register_coco_json("coco_json_test", str(registered), str(folder))
    with pytest.raises(InputError, match="'coco_json_test' is registered with json_file .*another"):
        register_coco_json("coco_json_test", str(registered), str(folder / "elsewhere"))
    with pytest.raises(MissingFileError, match="gone.json: .* not exist; .*DETECTRON2_DATASETS"):
        register_coco_json("coco_json_gone", "gone.json", "")
    assert "coco_json_gone" not in DatasetCatalog


def test_check_datasets(registered, content):
    check_datasets(config(2))
    message = r"is 91 but data set 'coco_json_test' has 2 classes \(cat, dog\); set .* 2$"
    with pytest.raises(InputError, match=message):
        check_datasets(config(91))
    del content["annotations"][0]["area"]
    registered.write_text(json.dumps(content))
    check_datasets(config(2))


def test_check_datasets_for_evaluation_only(registered, content):
    content["annotations"] = []
    registered.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no image has a usable annotation"):
        check_datasets(config(2))
    check_datasets(config(2), eval_only=True)


def test_unregistered(registered):
    message = "'no_such_set' is not registered; .*one of .*'coco_json_test'"
    with pytest.raises(InputError, match=message):
        check_datasets(config(2, train=("no_such_set",)))


def test_data_set_that_is_no_json():
    DatasetCatalog.register("from_function", lambda: [{"file_name": "x", "annotations": []}])
    MetadataCatalog.get("from_function").set(thing_classes=["a", "b", "c"])
    try:
        check_datasets(config(3, train=("from_function",), test=()))
        with pytest.raises(InputError, match="NUM_CLASSES is 2 but .* has 3 classes"):
            check_datasets(config(2, train=("from_function",), test=()))
    finally:
        DatasetCatalog.remove("from_function")
        MetadataCatalog.pop("from_function")
