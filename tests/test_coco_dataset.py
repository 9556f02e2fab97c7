"""What a COCO json says reaches the mapper, the classes and pycocotools, however it is written."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr import (
    DeformableDETRDatasetMapper,
    check_coco_json,
    check_datasets,
    load_config,
    register_coco_json,
)
from detectron2_ddetr.data.coco_json import read_coco_json
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import (
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
    register_coco_instances,
)

from .conftest import CONFIGS

WIDTH, HEIGHT, NUM_IMAGES = 96, 72, 8


@pytest.fixture(autouse=True)
def catalogs():
    """Each test leaves no data set behind."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i in range(NUM_IMAGES):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"{i}.png")
    return root


def base(per_image=3):
    """Boxes of two classes within their images, by a fixed draw."""
    rng = np.random.default_rng(0)
    records = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(NUM_IMAGES)
    ]
    annotations = []
    for k in range(per_image * NUM_IMAGES):
        w, h = (int(v) for v in rng.integers(8, 40, 2))
        x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
        annotations.append(
            {"id": k + 1, "image_id": k % NUM_IMAGES, "category_id": 1 + k % 2, "iscrowd": 0,
             "bbox": [x, y, w, h], "area": w * h}  # fmt: skip
        )
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    return {"images": records, "annotations": annotations, "categories": categories}


def write(folder, content, name="data"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


def config(train=(), test=(), num_classes=2):
    cfg = load_config(str(CONFIGS / "quick_start.yaml"))
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def each(content, key, value):
    """Sets a field of every annotation to value(annotation, number)."""
    for number, annotation in enumerate(content["annotations"]):
        annotation[key] = value(annotation, number)


def corners(annotation, number):
    x, y, w, h = annotation["bbox"]
    return [[x, y, x + w, y + h]]


ODD = {
    "plain": lambda c: None,
    "empty polygon": lambda c: each(c, "segmentation", lambda a, i: [[]]),
    "two corners": lambda c: each(c, "segmentation", corners),
    "one of many": lambda c: c["annotations"][3].update(segmentation=[[]]),
    "odd polygon": lambda c: each(c, "segmentation", lambda a, i: [[1, 2, 3, 4, 5, 6, 7]]),
    "segmentation of text": lambda c: each(c, "segmentation", lambda a, i: "none"),
    "segmentation of numbers": lambda c: each(c, "segmentation", lambda a, i: [1, 2, 3, 4]),
    "no counts": lambda c: each(c, "segmentation", lambda a, i: {"size": [1, 2]}),
    "null": lambda c: each(c, "segmentation", lambda a, i: None),
    "keypoints of text": lambda c: each(c, "keypoints", lambda a, i: "none"),
    "crowd": lambda c: c["annotations"][0].update(iscrowd=1, segmentation={"counts": "x"}),
    "crowd of one image alone": lambda c: [
        a.update(iscrowd=1) for a in c["annotations"] if a["image_id"] == 2
    ],
    "box without width": lambda c: c["annotations"][0].update(bbox=[3, 4, 0, 5]),
    "thinner than a float": lambda c: c["annotations"][0].update(bbox=[50, 4, 1e-9, 5]),
    "iscrowd null": lambda c: each(c, "iscrowd", lambda a, i: None),
    "iscrowd false": lambda c: each(c, "iscrowd", lambda a, i: False),
    "ids from 0": lambda c: each(c, "id", lambda a, i: i),
    "ids doubled": lambda c: each(c, "id", lambda a, i: 1 + i // 2),
    "ids of text": lambda c: each(c, "id", lambda a, i: f"a{i}"),
    "no ids": lambda c: [a.pop("id") for a in c["annotations"]],
    "no area": lambda c: [a.pop("area") for a in c["annotations"]],
    "area null": lambda c: each(c, "area", lambda a, i: None),
    "area text": lambda c: each(c, "area", lambda a, i: "123"),
    "area negative": lambda c: each(c, "area", lambda a, i: -1),
    "area NaN": lambda c: each(c, "area", lambda a, i: math.nan),
    "area list": lambda c: each(c, "area", lambda a, i: [1]),
    "area of 400 digits": lambda c: each(c, "area", lambda a, i: 10**400),
    "area constant": lambda c: each(c, "area", lambda a, i: 1.0),
    "no iscrowd": lambda c: [a.pop("iscrowd") for a in c["annotations"]],
    "ignore null": lambda c: each(c, "ignore", lambda a, i: None),
    "image ids of text": lambda c: (
        [r.update(id=f"n{r['id']}") for r in c["images"]],
        each(c, "image_id", lambda a, i: f"n{a['image_id']}"),
    ),
    "image ids of both": lambda c: (
        [r.update(id=str(r["id"])) for r in c["images"][:3]],
        each(
            c, "image_id", lambda a, i: str(a["image_id"]) if a["image_id"] < 3 else a["image_id"]
        ),
    ),
    "image ids quoted on one side": lambda c: [r.update(id=str(r["id"])) for r in c["images"]],
    "image ids with a point": lambda c: [r.update(id=float(r["id"])) for r in c["images"]],
    "image ids above 2^63": lambda c: (
        [r.update(id=2**64 + r["id"]) for r in c["images"]],
        each(c, "image_id", lambda a, i: 2**64 + a["image_id"]),
    ),
    "category ids of text": lambda c: (
        [r.update(id=str(r["id"])) for r in c["categories"]],
        each(c, "category_id", lambda a, i: str(a["category_id"])),
    ),
    "category ids quoted on one side": lambda c: each(
        c, "category_id", lambda a, i: str(a["category_id"])
    ),
    "category ids from 0": lambda c: (
        [r.update(id=r["id"] - 1) for r in c["categories"]],
        each(c, "category_id", lambda a, i: a["category_id"] - 1),
    ),
    "width with a point": lambda c: [r.update(width=96.0, height=72.0) for r in c["images"]],
    "an image without boxes": lambda c: c.update(
        annotations=[a for a in c["annotations"] if a["image_id"] != 1]
    ),
}


@pytest.fixture(params=ODD)
def odd(request, tmp_path, images):
    """(name, path, content) of a registered json whose oddity does not change what it means."""
    content = base()
    ODD[request.param](content)
    return request.param, write(tmp_path, content), content


def count_by_hand(content):
    """How many boxes a detector should learn from: no crowd, and an area in single precision."""
    count = 0
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        x1, y1 = np.float32(x + w), np.float32(y + h)
        count += not annotation.get("iscrowd") and x1 > np.float32(x) and y1 > np.float32(y)
    return count


@pytest.mark.parametrize("register", ["ours", "toolbox's"])
@pytest.mark.parametrize("filter_empty", [False, True])
def test_as_many_boxes_reach_the_mapper_as_the_check_counts(odd, images, register, filter_empty):
    """Whoever registered the file."""
    _, path, content = odd
    if register == "ours":
        register_coco_json("odd", path, str(images))
    else:
        register_coco_instances("odd", {}, path, str(images))
    cfg = config(train=["odd"])
    check_datasets(cfg)
    mapper = DeformableDETRDatasetMapper(True, augmentations=[], image_format="RGB")
    dicts = get_detection_dataset_dicts("odd", filter_empty=filter_empty)
    found = [mapper(d)["instances"] for d in dicts]
    usable = read_coco_json(path, None).num_usable
    assert sum(len(f) for f in found) == usable == count_by_hand(content)
    expected = sorted(
        [*np.float32([x, y, x + w, y + h]).tolist(), str(a["category_id"])]
        for a in content["annotations"]
        for x, y, w, h in [a["bbox"]]
        if not a.get("iscrowd")
    )
    first = min(str(c["id"]) for c in content["categories"])
    got = sorted(
        [*box, str(int(first) + int(label))]
        for f in found
        for box, label in zip(f.gt_boxes.tensor.tolist(), f.gt_classes)
    )
    assert got == [e for e in expected if e[2] > e[0] and e[3] > e[1]]


def test_what_a_file_holds_is_summed_up(tmp_path, images):
    path, images = tmp_path / "data.json", shutil.copytree(images, tmp_path / "images")

    def summary(content, **options):
        path.write_text(json.dumps(content))
        return check_coco_json(str(path), str(images), **options).splitlines()

    lines = summary(base())
    assert [line.split() for line in lines[:3]] == [
        ["row", "id", "boxes", "name"], ["0", "1", "12", "red"], ["1", "2", "12", "green"]
    ]  # fmt: skip
    assert f"{path}: 8 images, 24 boxes" in " ".join(" ".join(lines).split())
    assert lines[-1] == "no problem found"
    content = base()
    del content["annotations"][0]["area"]
    assert summary(content)[-1] == "can be used, but see the 1 warning above"
    for content in ({**base(), "annotations": []}, {"images": base()["images"]}):
        lines = summary(content, needs_annotations=False)
        assert "8 images, 0 boxes, so that it can be predicted on, not trained on" in "".join(
            line.strip() + " " for line in lines
        )
    (images / "3.png").write_text("no image")
    with pytest.raises(InputError, match="1 of 8 images cannot be used"):
        summary(base())


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_data_set_needs_a_name(name):
    with pytest.raises(InputError, match="the name of a data set must be a word"):
        register_coco_json(name, "train.json", "images")
