"""Box AP against pycocotools, detectron2 and closed forms; what is written, and where."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2_ddetr.engine import evaluator as evaluator_module
from detectron2_ddetr.engine.box_metrics import summary_line
from detectron2_ddetr.engine.evaluator import BoxEvaluator, build_evaluator
from detectron2_ddetr.engine.trainer import Trainer
from detectron2_ddetr.toolbox import (
    TOOLBOX,
    Boxes,
    BoxMode,
    DatasetCatalog,
    Instances,
    MetadataCatalog,
    register_coco_instances,
)

from .conftest import small_cfg

CATEGORIES = [{"id": 9, "name": "c"}, {"id": 1, "name": "a"}, {"id": 4, "name": "b"}]


@pytest.fixture
def register(tmp_path):
    """Registers a COCO json under a name; what was registered is forgotten after the test."""
    names = []

    def register(name, content):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        names.append(name)
        DatasetCatalog.get(name)  # sets the metadata
        return str(path)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def random_set(seed=0, num_images=6, boxes_per_image=12, categories=(1, 4, 9), with_crowds=True):
    """Boxes of all of COCO's sizes; some are crowd regions."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": 3 * i + 2, "file_name": f"{i}.png", "height": 400, "width": 500}
        for i in range(num_images)
    ]
    annotations = []
    for image in images:
        for _ in range(boxes_per_image):
            x, y, w, h = (rng.random(4) * [300, 250, 180, 140] + [0, 0, 4, 4]).round(2).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(categories)),
                    "bbox": [x, y, w, h],
                    "area": round(w * h * 0.8, 3),
                    "iscrowd": int(with_crowds and rng.random() < 0.1),
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def noisy_detections(content, seed=0, copies=3, noise=6.0):
    """(image id, (T, 4) x, y, w, h, scores, class numbers), with wrong classes among them."""
    rng = np.random.default_rng(seed)
    place = {1: 0, 4: 1, 9: 2}
    found = []
    for image in content["images"]:
        boxes, classes = [], []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                for _ in range(copies):
                    boxes.append(np.array(annotation["bbox"]) + rng.normal(0, noise, 4))
                    wrong = rng.random() < 0.2
                    classes.append(rng.integers(3) if wrong else place[annotation["category_id"]])
        boxes = np.array(boxes).reshape(-1, 4)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
        found.append((image["id"], boxes, rng.permutation(len(boxes)) / 997, np.array(classes)))
    return found


def feed(evaluator, found):
    evaluator.reset()
    for image_id, boxes, scores, classes in found:
        boxes = torch.as_tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4)
        instances = Instances((400, 500))
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.scores = torch.as_tensor(np.asarray(scores), dtype=torch.float32)
        instances.pred_classes = torch.as_tensor(np.asarray(classes), dtype=torch.int64)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def grid(num_boxes=300):
    """The set of a crowded image, and its detection without fault."""
    boxes = [[20 * (i % 20), 20 * (i // 20), 16, 16] for i in range(num_boxes)]
    annotations = [
        {"id": i, "image_id": 5, "category_id": 1, "bbox": box, "area": 256, "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    images = [{"id": 5, "file_name": "a.png", "height": 300, "width": 400}]
    content = {"images": images, "annotations": annotations}
    scores = np.linspace(0.9, 0.1, num_boxes)
    found = [(5, boxes, scores, np.zeros(num_boxes, int))]
    return {**content, "categories": [{"id": 1, "name": "a"}]}, found


@pytest.mark.parametrize("limit, expected", [(300, 100.0), (100, 100 * 34 / 101), (500, 100.0)])
def test_limit_of_detections(register, tmp_path, limit, expected):
    """A third of the boxes is a recall that reaches 34 of COCO's 101 points."""
    content, found = grid()
    register("grid", content)
    cfg = small_cfg("TEST.DETECTIONS_PER_IMAGE", limit, "OUTPUT_DIR", str(tmp_path / "out"))
    cfg.DATASETS.TEST = ("grid",)
    metrics = feed(Trainer.build_evaluator(cfg, "grid"), found)["bbox"]
    recall = {300: 100.0, 100: 100 / 3, 500: 100.0}[limit]
    figures = {name: expected for name in ("AP", "AP50", "AP75", "APs")} | {"AR": recall}
    assert metrics == pytest.approx(figures)


@pytest.mark.parametrize("limit", [1, 5, 17, 100])
def test_a_smaller_limit_takes_the_best(register, limit):
    """As if the model had given no more than that."""
    content = random_set(categories=(4,))
    register("set", content)
    found = [(i, b, s, np.full(len(s), 1)) for i, b, s, _ in noisy_detections(content)]
    ours = feed(BoxEvaluator("set", max_dets_per_image=limit), found)["bbox"]
    best = []
    for image_id, boxes, scores, classes in found:
        order = np.argsort(-scores)[:limit]
        best.append((image_id, boxes[order], scores[order], classes[order]))
    assert ours == pytest.approx(feed(BoxEvaluator("set"), best)["bbox"])


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_pycocotools(register, tmp_path, seed):
    content = random_set(seed)
    path = register("set", content)
    ours = feed(BoxEvaluator("set", str(tmp_path)), noisy_detections(content, seed))["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        found = truth.loadRes(str(tmp_path / "coco_instances_results.json"))
        theirs = COCOeval(truth, found, "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    np.testing.assert_allclose([ours[n] for n in names], 100 * theirs.stats[:6], rtol=1e-12)
    np.testing.assert_allclose(ours["AR"], 100 * theirs.stats[8], rtol=1e-12)
    assert 5 < ours["AP"] < 95
    assert np.mean([ours[f"AP-{n}"] for n in "abc"]) == pytest.approx(ours["AP"])


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="compares with detectron2")
@pytest.mark.parametrize("limit", [None, 10, 30, 100, 300])
def test_figures_are_those_of_detectron2(register, tmp_path, limit):
    from detectron2.evaluation import COCOEvaluator

    content = random_set(boxes_per_image=25)
    register("set", content)
    found = noisy_detections(content, copies=12)
    (tmp_path / "theirs").mkdir()
    theirs = COCOEvaluator("set", output_dir=str(tmp_path / "theirs"), max_dets_per_image=limit)
    ours = BoxEvaluator("set", str(tmp_path / "ours"), max_dets_per_image=limit or 100)
    results = [dict(feed(evaluator, found)["bbox"]) for evaluator in (ours, theirs)]
    assert results[0].pop("AR") > 0  # detectron2 has none for boxes
    assert results[0] == pytest.approx(results[1], abs=1e-9)
    files = [tmp_path / w / "coco_instances_results.json" for w in ("ours", "theirs")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


def test_what_has_no_ground_truth(register, tmp_path, caplog):
    """It is named and left out; the rest is as before. The json that results is json."""
    content = random_set(categories=(1, 9))
    small = [a for a in content["annotations"] if a["area"] < 96**2]
    content["annotations"] = small
    register("set", content)
    found = noisy_detections(content)
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        metrics = feed(BoxEvaluator("set"), found)["bbox"]
    assert set(metrics) == {"AP", "AP50", "AP75", "APs", "APm", "AR", "AP-a", "AP-c"}
    assert metrics["AP"] == pytest.approx((metrics["AP-a"] + metrics["AP-c"]) / 2)
    (table,) = [r.getMessage() for r in caplog.records if "Box AP" in r.getMessage()]
    lines = [line.split() for line in table.splitlines()[2:]]
    assert [line[0] for line in lines] == ["a", "b", "c", "(all)"]
    assert [line[2] for line in lines] == [
        *(f"{metrics['AP-a']:.2f}", "-", f"{metrics['AP-c']:.2f}", f"{metrics['AP']:.2f}")
    ]
    assert lines[1] == ["b", "0"] + ["-"] * 7
    assert "APm " in summary_line(metrics) and summary_line(metrics).count("APl -") == 1
    assert "nan" not in caplog.text.lower()


def test_category_order_is_that_of_the_class_numbers(register):
    """Class 0 is the category that the metadata say, whatever the order of ids in the json."""
    content = random_set(with_crowds=False)
    register("set", content)
    perfect = noisy_detections(content, copies=1, noise=0.0, seed=3)
    place = {1: 0, 4: 1, 9: 2}
    for i, (image_id, boxes, scores, _) in enumerate(perfect):
        of_image = [a for a in content["annotations"] if a["image_id"] == image_id]
        classes = np.array([place[a["category_id"]] for a in of_image])
        keep = classes != 1  # all but category 4, "b", are found
        perfect[i] = (image_id, boxes[keep], scores[keep], classes[keep])
    metrics = feed(BoxEvaluator("set"), perfect)["bbox"]
    expected = {"AP-a": 100.0, "AP-b": 0.0, "AP-c": 100.0}
    assert {k: v for k, v in metrics.items() if "-" in k} == pytest.approx(expected)


def test_class_that_the_set_does_not_have(register, tmp_path):
    """Trained on more classes than this set has: detections of the others do not count."""
    content = random_set()
    register("set", content)
    found = noisy_detections(content)
    expected = feed(BoxEvaluator("set"), found)["bbox"]
    register("more", content)
    metadata = MetadataCatalog.pop("more")
    MetadataCatalog.get("more").set(
        json_file=metadata.json_file,
        thing_classes=["a", "b", "c", "d"],
        thing_dataset_id_to_contiguous_id={1: 0, 4: 1, 9: 2},
    )
    others = [(i, b, s + 1, np.full(len(s), 3)) for i, b, s, _ in found]
    assert feed(BoxEvaluator("more"), [*others, *found])["bbox"] == expected


def test_no_detection_is_an_ap_of_zero(register, tmp_path, caplog):
    register("set", random_set())
    metrics = feed(BoxEvaluator("set", str(tmp_path / "new")), [])["bbox"]
    assert metrics["AP"] == metrics["AP-a"] == 0 and "detected nothing" in caplog.text
    assert json.loads((tmp_path / "new/coco_instances_results.json").read_text()) == []


@pytest.mark.parametrize("missing", [True, False])
def test_set_without_labels_is_predicted_only(register, tmp_path, missing):
    content = random_set()
    found = noisy_detections(content)
    content["annotations"] = []
    register("set", content)
    if missing:
        del content["annotations"]
        (tmp_path / "set.json").write_text(json.dumps(content))
    assert feed(BoxEvaluator("set", str(tmp_path)), found) == {}
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(rows) == sum(len(boxes) for _, boxes, _, _ in found)


def test_annotation_ids_and_missing_areas_do_not_matter(register):
    """COCOeval itself takes a match with annotation 0 for none, and fails without area."""
    content = random_set(with_crowds=False)
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    register("usual", content)
    found = noisy_detections(content)
    expected = feed(BoxEvaluator("usual"), found)
    for annotation in content["annotations"]:
        annotation["id"] -= 1
        annotation["area"] = None
        del annotation["iscrowd"]
    register("odd", content)
    assert feed(BoxEvaluator("odd"), found) == expected


def test_data_set_without_a_json(register):
    """Registered as a function: same figures."""
    content = random_set()
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    register("json", content)
    found = noisy_detections(content)
    dicts = DatasetCatalog.get("json")
    for d in dicts:
        for a in d["annotations"]:
            a["bbox"] = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            a["bbox_mode"] = BoxMode.XYXY_ABS
    DatasetCatalog.register("function", lambda: dicts)
    MetadataCatalog.get("function").set(thing_classes=["a", "b", "c"])
    try:
        expected = feed(BoxEvaluator("json"), found)["bbox"]
        assert feed(BoxEvaluator("function"), found)["bbox"] == pytest.approx(expected)
    finally:
        DatasetCatalog.remove("function")
        MetadataCatalog.pop("function")


def test_each_of_several_sets_has_its_folder(register, tmp_path):
    cfg = small_cfg("OUTPUT_DIR", str(tmp_path / "out"))
    content, found = grid(4)
    for name in ("one", "two"):
        register(name, content)
    cfg.DATASETS.TEST = ("one",)
    feed(build_evaluator(cfg, "one"), found)
    assert (tmp_path / "out/coco_instances_results.json").exists()
    cfg.DATASETS.TEST = ("one", "two")
    feed(build_evaluator(cfg, "one"), found)
    feed(build_evaluator(cfg, "two"), [])
    rows = [
        len(json.loads((tmp_path / f"out/inference/{n}/coco_instances_results.json").read_text()))
        for n in ("one", "two")
    ]
    assert rows == [4, 0]


def test_detections_of_all_processes_count_once(register, monkeypatch, tmp_path):
    content = random_set()
    register("set", content)
    found = noisy_detections(content)
    expected = feed(BoxEvaluator("set"), found)
    first, second = BoxEvaluator("set"), BoxEvaluator("set", str(tmp_path))
    comm = evaluator_module.comm
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert feed(second, found[3:]) == {} and not list(tmp_path.glob("coco*"))
    other = second._predictions
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, other])
    assert feed(first, found[:3]) == expected
