"""Classes are known by their names, whatever each file's category ids are."""

import contextlib
import io
import json
import logging

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2_ddetr import check_datasets, register_coco_json
from detectron2_ddetr.data.class_names import class_names
from detectron2_ddetr.engine.evaluator import BoxEvaluator
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import (
    Boxes,
    DatasetCatalog,
    Instances,
    MetadataCatalog,
    register_coco_instances,
)

from .test_coco_dataset import ODD, base, catalogs, config, images, write  # noqa: F401

NAMES = ["red", "green"]


def renumber(content, ids, order=None):
    """Other category ids, by name, and another order of the list."""
    old = {c["id"]: c["name"] for c in content["categories"]}
    content["categories"] = [{"id": ids[n], "name": n} for n in order or ids]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[old[annotation["category_id"]]]
    return content


def detections(content):
    """
    By image id: boxes near the true ones, scores, and class numbers in the order of NAMES. Some are
    of the wrong class, and the two classes are found to different degrees.
    """
    generator = torch.Generator().manual_seed(0)
    names = {c["id"]: c["name"] for c in content["categories"]}
    found = {}
    for record in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == record["id"]]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32)
        labels = torch.tensor([NAMES.index(names[a["category_id"]]) for a in own])
        noise = torch.where(labels == 0, 1.0, 3.0)[:, None]
        boxes = boxes + noise * torch.randn(boxes.shape, generator=generator)
        flipped = torch.rand(len(own), generator=generator) < 0.15
        labels = torch.where(flipped, 1 - labels, labels)
        found[record["id"]] = (boxes, torch.rand(len(own), generator=generator), labels)
    return found


def expected_results(path, content):
    """AP, AP by size and AP by class, by pycocotools alone from a file that it can read."""
    results = [
        {"image_id": i, "category_id": 1 + int(label), "bbox": box, "score": score}
        for i, columns in detections(content).items()
        for box, score, label in zip(*(c.tolist() for c in columns))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        scored = {}
        for name, ids in (("", [1, 2]), ("-red", [1]), ("-green", [2])):
            coco_eval = COCOeval(truth, truth.loadRes(results), "bbox")
            coco_eval.params.catIds = ids
            coco_eval.evaluate(), coco_eval.accumulate(), coco_eval.summarize()
            keys = ["AP", "AP50", "AP75", "APs", "APm", "APl"] if not name else ["AP"]
            scored |= {f"{key}{name}": 100 * s for key, s in zip(keys, coco_eval.stats)}
            scored |= {"AR": 100 * coco_eval.stats[8]} if not name else {}
    return {key: value for key, value in scored.items() if value >= 0}


def evaluate(name, found, output_dir):
    """What the evaluator makes of detections by the image ids of the file."""
    evaluator = BoxEvaluator(name, output_dir=str(output_dir))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        boxes, scores, labels = found(record)
        output = Instances((record.get("height", 1), record.get("width", 1)))
        corners = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)
        output.pred_boxes, output.scores, output.pred_classes = Boxes(corners), scores, labels
        evaluator.process([record], [{"instances": output}])
    return evaluator.evaluate()


def by_file(content):
    """Detections by file name, since oddities change the ids."""
    found = detections(content)
    by_name = {r["file_name"]: found[r["id"]] for r in content["images"]}
    return lambda record: by_name[record["file_name"].rsplit("/", 1)[-1]]


@pytest.fixture
def sound(tmp_path, images):  # noqa: F811
    """(path, content, expected results) of the file as pycocotools wants it."""
    content = base()
    path = write(tmp_path, content, "train")
    return path, content, expected_results(path, content)


OTHER_IDS = {
    "swapped": ({"red": 2, "green": 1}, None),
    "swapped, listed otherwise": ({"red": 2, "green": 1}, ["green", "red"]),
    "far apart": ({"red": 70, "green": 9}, None),
    "from 0": ({"red": 0, "green": 1}, None),
    "text": ({"red": "b", "green": "a"}, None),
    "same": ({"red": 1, "green": 2}, ["green", "red"]),
}


@pytest.mark.parametrize("ids", OTHER_IDS)
@pytest.mark.parametrize("register", ["ours", "toolbox's"])
@pytest.mark.parametrize("eval_only", [False, True])
def test_other_category_ids_evaluate_alike(
    sound, tmp_path, images, ids, register, eval_only  # noqa: F811
):
    path, content, expected = sound
    val = write(tmp_path, renumber(base(), *OTHER_IDS[ids]), "val")
    for name, file in (("train", path), ("val", val)):
        if register == "ours":
            register_coco_json(name, file, str(images))
        else:
            register_coco_instances(name, {}, file, str(images))
    cfg = config(["train"], ["val"])
    check_datasets(cfg, eval_only=eval_only)
    assert class_names(cfg, eval_only=eval_only) == NAMES
    assert MetadataCatalog.get("val").thing_classes == NAMES
    results = evaluate("val", by_file(content), tmp_path)["bbox"]
    assert results == pytest.approx(expected, abs=1e-6)
    assert expected["AP-red"] > expected["AP-green"] + 1 > 1
    # The file itself is as it was.
    assert json.loads(open(val).read()) == renumber(base(), *OTHER_IDS[ids])


@pytest.mark.parametrize("oddity", ODD)
def test_odd_files_evaluate_alike(oddity, tmp_path, images):  # noqa: F811
    """As pycocotools evaluates the same boxes written soundly: whatever it reads gets mended."""
    content = base()
    ODD[oddity](content)
    meant = base()
    for said, sound in zip(content["annotations"], meant["annotations"]):  # noqa: F402
        sound["bbox"], sound["iscrowd"] = said["bbox"], int(said.get("iscrowd") or 0)
    meant["annotations"] = meant["annotations"][: len(content["annotations"])]
    if oddity == "an image without boxes":
        meant["annotations"] = [a for a in base()["annotations"] if a["image_id"] != 1]
    expected = expected_results(write(tmp_path, meant, "meant"), meant)
    register_coco_json("odd", write(tmp_path, content), str(images))
    check_datasets(config(test=["odd"]), eval_only=True)
    results = evaluate("odd", by_file(meant), tmp_path)["bbox"]
    assert results == pytest.approx(expected, abs=1e-6)
    assert results["AP"] > 5


def test_order_of_a_checkpoint(tmp_path, images, sound):  # noqa: F811
    """Evaluation without the training set follows the names that the checkpoint has."""
    _, content, expected = sound
    val = write(tmp_path, renumber(base(), {"red": 2, "green": 1}), "val")
    register_coco_json("val", val, str(images))
    cfg = config(["not_here"], ["val"])
    assert class_names(cfg, eval_only=True) == ["green", "red"]
    assert class_names(cfg, eval_only=True, order=NAMES) == NAMES
    results = evaluate("val", by_file(content), tmp_path)["bbox"]
    assert results == pytest.approx(expected, abs=1e-6)
    message = (
        "'val'.*the checkpoint lacks: 'green' .12 boxes.*or take a checkpoint that was trained"
    )
    with pytest.raises(InputError, match=message):
        class_names(cfg, eval_only=True, order=["red", "blue"])


def test_two_training_sets(tmp_path, images, sound):  # noqa: F811
    """Their dicts number the classes alike, and the toolbox takes them together."""
    from detectron2_ddetr.toolbox import get_detection_dataset_dicts

    other = write(tmp_path, renumber(base(), {"red": 2, "green": 1}), "other")
    register_coco_json("one", sound[0], str(images))
    register_coco_json("two", other, str(images))
    cfg = config(["one", "two"], ["two"])
    check_datasets(cfg)
    dicts = get_detection_dataset_dicts(("one", "two"), filter_empty=False)
    labels = [[a["category_id"] for a in d["annotations"]] for d in dicts]
    assert labels[: len(labels) // 2] == labels[len(labels) // 2 :]
    assert sum(map(sum, labels)) == 24


def test_a_test_set_may_lack_classes(tmp_path, images, sound):  # noqa: F811
    """Their AP is that of the others, and the numbers of these stay."""
    path, content, _ = sound
    green = [a for a in base()["annotations"] if a["category_id"] == 2]
    val = base() | {"annotations": green}
    expected = expected_results(write(tmp_path, val, "same"), val)
    val["categories"] = [{"id": 2, "name": "green"}]
    register_coco_json("train", path, str(images))
    register_coco_json("val", write(tmp_path, val, "val"), str(images))
    check_datasets(config(["train"], ["val"]))
    found = detections(base() | {"annotations": green})
    results = evaluate("val", lambda r: found[r["image_id"]], tmp_path)["bbox"]
    assert results == pytest.approx(expected, abs=1e-6)
    # Detections of the others would be of no category of this file.
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {r["category_id"] for r in written} == {2}
    assert any((labels == 0).any() for _, _, labels in found.values())


def with_third(content, name="blue", boxes=1):
    content["categories"].append({"id": 3, "name": name})
    for annotation in content["annotations"][:boxes]:
        annotation["category_id"] = 3
    return content


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_class_that_training_lacks(tmp_path, images, sound, num_classes):  # noqa: F811
    """One message whatever NUM_CLASSES is; both of its remedies work."""
    val = write(tmp_path, with_third(base()), "val")
    register_coco_json("train", sound[0], str(images))
    register_coco_json("val", val, str(images))
    with pytest.raises(InputError) as error:
        check_datasets(config(["train"], ["val"], num_classes))
    for words in ("'train'", "'val'", "train.json", "val.json", "'blue' (1 box)", "red, green",
                  "NUM_CLASSES 3"):  # fmt: skip
        assert words in str(error.value)
    train = base()
    train["categories"].append({"id": 3, "name": "blue"})
    write(tmp_path, train, "train")
    check_datasets(config(["train"], ["val"], 3))
    write(tmp_path, base(), "train")
    write(tmp_path, base(), "val")
    check_datasets(config(["train"], ["val"], 2))


def test_spelling_is_guessed(tmp_path, images, sound):  # noqa: F811
    val = base()
    val["categories"][0]["name"] = "Red "
    register_coco_json("train", sound[0], str(images))
    register_coco_json("val", write(tmp_path, val, "val"), str(images))
    with pytest.raises(InputError, match="'Red ' .12 boxes.*'red' for 'Red ' is meant"):
        check_datasets(config(["train"], ["val"]))


def test_categories_without_boxes(tmp_path, images, sound, caplog):  # noqa: F811
    """In training they are noticed in one line; in a test set they are left out."""
    train = base()
    train["categories"].insert(0, {"id": 0, "name": "colours", "supercategory": "none"})
    register_coco_json("parent", write(tmp_path, train, "parent"), str(images))
    with caplog.at_level(logging.WARNING):
        check_datasets(config(["parent"], [], 3))
    (record,) = caplog.records
    assert "1 of 3 categories have no annotation: 'colours' (id 0)" in record.message
    caplog.clear()
    register_coco_json("train", sound[0], str(images))
    with caplog.at_level(logging.WARNING):
        check_datasets(config(["train"], ["parent"], 2))
    (record,) = caplog.records
    assert "left out: colours" in record.message
    results = evaluate("parent", by_file(base()), tmp_path)["bbox"]
    assert results == pytest.approx(sound[2], abs=1e-6)


def test_evaluation_on_other_classes_than_the_config_trains_on(
    tmp_path, images, caplog  # noqa: F811
):
    """DATASETS.TRAIN of a shipped config does not matter then."""
    register_coco_json("val", write(tmp_path, base(), "val"), str(images))
    check_datasets(config(["bccd_train"], ["val"], 2), eval_only=True)
    assert MetadataCatalog.get("val").thing_classes == NAMES and not caplog.records
    with pytest.raises(InputError, match="is 5 but data set 'val' has 2 classes"):
        check_datasets(config(["bccd_train"], ["val"], 5), eval_only=True)


def test_the_config_may_name_the_classes(tmp_path, images):  # noqa: F811
    """In another order than the ids have, with one that this data set lacks; for training too."""
    register_coco_json("train", write(tmp_path, base(), "train"), str(images))
    cfg = config(["train"], ["train"], 3)
    cfg.DATASETS.CLASS_NAMES = ["green", "blue", "red"]
    assert check_datasets(cfg) == class_names(cfg) == ["green", "blue", "red"]
    dicts = DatasetCatalog.get("train")
    for record, again in zip(dicts, [r for r in base()["images"]]):
        theirs = [a for a in base()["annotations"] if a["image_id"] == again["id"]]
        numbers = {1: 2, 2: 0}  # red, green
        expected = [numbers[a["category_id"]] for a in theirs]
        assert [a["category_id"] for a in record["annotations"]] == expected
    cfg.DATASETS.CLASS_NAMES = ["red"]
    with pytest.raises(
        InputError, match="DATASETS.CLASS_NAMES lacks: 'green'.*CLASS_NAMES '\\(\\)'"
    ):
        check_datasets(cfg)
    for wrong in (["red", "red"], ["red", 3]):
        cfg.DATASETS.CLASS_NAMES = wrong
        with pytest.raises(InputError, match="CLASS_NAMES must be different names, got"):
            check_datasets(cfg)
    cfg.DATASETS.CLASS_NAMES = ()
    cfg.MODEL.DETR.NUM_CLASSES = 2
    assert check_datasets(cfg) == NAMES


UNLABELLED = {
    "no annotations": ("annotations",),
    "images alone": ("annotations", "categories"),
    "empty lists": ("annotations", "categories"),
}


@pytest.mark.parametrize("missing", UNLABELLED)
@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("with_train", [True, False])
def test_prediction_without_labels(missing, sizes, with_train, tmp_path, images):  # noqa: F811
    """They have the category ids of the file, or else of the training; nothing is scored."""
    content = renumber(base(), {"red": 20, "green": 10})
    for key in UNLABELLED[missing]:
        del content[key]
        if missing == "empty lists":
            content[key] = []
    if not sizes:
        for record in content["images"]:
            del record["width"], record["height"]
    path = tmp_path / "test.json"
    path.write_bytes(json.dumps(content).encode("utf-16" if missing == "empty lists" else "utf-8"))
    register_coco_json("test", str(path), str(images))
    assert not any("annotations" in record for record in DatasetCatalog.get("test"))
    train = write(tmp_path, renumber(base(), {"red": 5, "green": 8}), "train")
    register_coco_json("train", train, str(images))
    cfg = config(["train"] if with_train else ["not_here"], ["test"])
    check_datasets(cfg, eval_only=True)
    names = class_names(cfg, eval_only=True)
    if missing != "no annotations" and not with_train:
        assert names is None and MetadataCatalog.get("test").thing_classes == ["class 0", "class 1"]
    else:
        assert names == (NAMES if with_train else ["green", "red"])
    assert evaluate("test", by_file(base()), tmp_path) == {}
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    if content.get("categories"):
        ids = [20, 10] if with_train else [10, 20]
    else:
        ids = [5, 8] if with_train else [1, 2]
    first = detections(base())
    labels = [int(v) for r in content["images"] for v in first[r["id"]][2]]
    assert [r["category_id"] for r in written] == [ids[v] for v in labels]
    with pytest.raises(InputError, match="no image has a usable annotation|key 'annotations'"):
        check_datasets(config(["test"], []))
