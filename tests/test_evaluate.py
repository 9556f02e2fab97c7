"""Detections in a file against a COCO json, and the figures by class."""

import csv
import json
import re

import numpy as np
import pytest

from detectron2_ddetr import evaluate as command
from detectron2_ddetr.engine.box_metrics import best_f1, box_metrics, run_coco, summary_lines
from detectron2_ddetr.engine.evaluator import BoxEvaluator
from detectron2_ddetr.engine.ground_truth import GroundTruth
from detectron2_ddetr.errors import InputError, MissingFileError
from detectron2_ddetr.toolbox import DatasetCatalog, MetadataCatalog

from .conftest import ROOT
from .fork_server import python
from .test_evaluator import (  # noqa: F401  (a fixture)
    CATEGORIES,
    feed,
    noisy_detections,
    random_set,
    register,
)


def sound_set(seed=0):
    """A set and its detections."""
    content = random_set(seed)
    return content, noisy_detections(content, seed)


@pytest.mark.parametrize("limit", [100, 5])
def test_the_figures_of_training(register, tmp_path, capsys, limit):  # noqa: F811
    """From the file that it wrote; the table is the same."""
    content, found = sound_set()
    truth = register("set", content)
    evaluator = BoxEvaluator("set", str(tmp_path / "out"), max_dets_per_image=limit)
    expected = feed(evaluator, found)["bbox"]
    predictions = str(tmp_path / "out" / "coco_instances_results.json")
    results = command.evaluate(predictions, truth, limit).results()
    assert results == pytest.approx(expected, abs=1e-6)
    assert {"AP", "AP50", "APl", "AR", "AP-a"} < set(results) and 5 < results["AP"] < 95
    capsys.readouterr()
    command.main([predictions, truth, "--max-detections", str(limit)])
    line, *table = capsys.readouterr().out.splitlines()
    assert line.startswith(f"AP {expected['AP']:.2f}  AP50 {expected['AP50']:.2f}  AP75 ")
    assert line.endswith(f"AR {expected['AR']:.2f}") and f"at most {limit} det" in table[0]
    metrics = box_metrics(run_coco(*both("set", predictions), limit), GroundTruth("set").classes)
    assert "\n".join(table) == metrics.table()


def both(name, predictions):
    with open(predictions, encoding="utf-8") as file:
        return GroundTruth(name).coco, json.load(file)


def test_as_a_program(register, tmp_path):  # noqa: F811
    content, found = sound_set()
    truth = register("set", content)
    feed(BoxEvaluator("set", str(tmp_path)), found)
    words = ["-m", "detectron2_ddetr.evaluate"]
    file = str(tmp_path / "coco_instances_results.json")
    status, said = python(*words, file, truth, cwd=ROOT)
    assert status == 0 and re.search("^AP ", said, re.M), said
    status, said = python(*words, truth, file, cwd=ROOT)
    assert status == 1 and said.startswith("error: ") and len(said.splitlines()) == 1


@pytest.fixture
def files(register, tmp_path):  # noqa: F811
    """(detections, path to write them to, path of the ground truth)"""
    content, found = sound_set()
    truth = register("set", content)
    feed(BoxEvaluator("set", str(tmp_path)), found)
    path = tmp_path / "coco_instances_results.json"
    return json.loads(path.read_text()), path, truth


def changed(key, value):
    def change(detections):
        detections[7][key] = value

    return change


def without(key):
    return lambda detections: detections[7].pop(key)


@pytest.mark.parametrize(
    "change, words",
    [
        (changed("image_id", 999), "place 7: image_id 999 is not among the"),
        (changed("image_id", "1"), "place 7: image_id '1' is not among the"),
        (changed("image_id", [1]), r"place 7: image_id \[1\] is not among the"),
        (changed("category_id", 2), "place 7: category_id 2 is not among the 3 categories of"),
        (changed("category_id", True), "place 7: category_id True is not among the 3 categories"),
        (without("image_id"), "place 7: image_id is missing"),
        (without("category_id"), "place 7: category_id is missing"),
        (without("bbox"), "place 7: bbox is missing .there are: .'category_id'"),
        (without("score"), "place 7: score is missing"),
        (changed("bbox", [1, 2, 3]), r"place 7: bbox must be 4 numbers .* got \[1, 2, 3\]"),
        (changed("bbox", [1, 2, 3, None]), "place 7: bbox must be 4 numbers"),
        (changed("score", float("nan")), "place 7: score must be a number, got nan"),
        (changed("score", "high"), "place 7: score must be a number, got 'high'"),
        (lambda detections: detections.insert(7, 3), "place 7: must be an object, got 3"),
    ],
)
def test_a_detection_that_does_not_fit(files, change, words):
    detections, path, truth = files
    change(detections)
    path.write_text(json.dumps(detections))
    with pytest.raises(InputError, match=f"coco_instances_results.json: detection at {words}"):
        command.evaluate(str(path), truth)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{}", "must be a list of objects .* got a dict; a file of annotations comes second"),
        ("3", "must be a list of objects .* got a int"),
        ("[{", "no json that can be read"),
        ("", "no json that can be read"),
        ("[" * 200_000, "no json that can be read"),
        (b"\xff\xfe[", "no json that can be read"),
    ],
    ids=["object", "number", "cut", "empty", "deep", "UTF-16"],
)
def test_a_file_that_holds_no_detections(files, text, words):
    _, path, truth = files
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"coco_instances_results.json: .*{words}"):
        command.evaluate(str(path), truth)


def test_files_that_are_not_there(files, tmp_path):
    _, path, truth = files
    for words in ((str(tmp_path / "no.json"), truth), (str(path), str(tmp_path / "no.json"))):
        with pytest.raises(MissingFileError, match="no.json: .*does not exist; .*correct its path"):
            command.evaluate(*words)
    with pytest.raises(MissingFileError, match="is a folder"):
        command.evaluate(str(tmp_path), truth)
    with pytest.raises(InputError, match="--max-detections is 0, but must be at least 1"):
        command.evaluate(str(path), truth, 0)


def test_ground_truth_that_is_none(files, tmp_path):
    """Swapped, without annotations, and with one that lacks its box."""
    detections, path, truth = files
    with pytest.raises(InputError, match="coco_instances_results.json: COCO json must be an obj"):
        command.evaluate(str(path), str(path))
    with open(truth, encoding="utf-8") as file:
        content = json.load(file)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(InputError, match="other.json: has no annotations"):
        command.evaluate(str(path), str(other))
    del content["annotations"][3]["bbox"]
    other.write_text(json.dumps(content))
    with pytest.raises(InputError, match="other.json: 1 problem.*\n.*annotation 4 .*bbox must be"):
        command.evaluate(str(path), str(other))


def figures_by_hand(content, detections, category, limit):
    """(score, F1, precision, recall) at the best score, by trying all; greedy matches at 0.5."""
    boxes = {i["id"]: [] for i in content["images"]}
    crowds = {i["id"]: [] for i in content["images"]}
    for annotation in content["annotations"]:
        if annotation["category_id"] == category:
            where = crowds if annotation["iscrowd"] else boxes
            where[annotation["image_id"]].append(annotation["bbox"])
    rows = []
    for image, own in boxes.items():
        mine = [d for d in detections if (d["image_id"], d["category_id"]) == (image, category)]
        free = list(own)
        for detection in sorted(mine, key=lambda d: -d["score"])[:limit]:
            overlaps = [iou(detection["bbox"], box) for box in free]
            if overlaps and max(overlaps) >= 0.5:
                free.pop(int(np.argmax(overlaps)))
                rows.append((detection["score"], True))
            elif all(iou(detection["bbox"], box, crowd=True) < 0.5 for box in crowds[image]):
                rows.append((detection["score"], False))
    total = sum(map(len, boxes.values()))
    tried = []
    for score in sorted({s for s, _ in rows}):
        taken = [hit for s, hit in rows if s >= score]
        precision, recall = sum(taken) / len(taken), sum(taken) / total
        f1 = 2 * precision * recall / (precision + recall) if sum(taken) else 0
        tried.append((f1, score, precision, recall))
    f1, *rest = max(tried)
    return (rest[0], f1, *rest[1:]), total


def iou(a, b, crowd=False):
    """Of (x, y, w, h) boxes; over a crowd region, the share of `a` alone."""
    w, h = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(w, 0) * max(h, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


@pytest.mark.parametrize("seed, limit", [(0, 100), (1, 100), (2, 3)])
def test_best_f1_of_each_class(register, tmp_path, seed, limit):  # noqa: F811
    """Against greedy matching and all thresholds, tried out; AP50 and boxes too."""
    content, found = sound_set(seed)
    truth = register("set", content)
    evaluator = BoxEvaluator("set", str(tmp_path), max_dets_per_image=limit)
    results = feed(evaluator, found)["bbox"]
    file = tmp_path / "coco_instances_results.json"
    metrics = command.evaluate(str(file), truth, limit)
    ids = {c["name"]: c["id"] for c in CATEGORIES}
    for row in metrics.classes:
        best, boxes = figures_by_hand(content, json.loads(file.read_text()), ids[row.name], limit)
        assert row.best == pytest.approx(best) and row.boxes == boxes
        assert row.ap == pytest.approx(results[f"AP-{row.name}"])
    assert np.mean([r.ap50 for r in metrics.classes]) == pytest.approx(results["AP50"])
    assert np.mean([r.ar for r in metrics.classes]) == pytest.approx(results["AR"])
    assert metrics.everything.boxes == sum(r.boxes for r in metrics.classes)
    with open(tmp_path / "per_class.csv", encoding="utf-8", newline="") as written:
        rows = list(csv.DictReader(written))
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    for row, expected in zip(rows, metrics.classes):
        numbers = [float(v) for v in list(row.values())[1:]]
        assert numbers == pytest.approx([*expected[1:5], *expected.best])


def test_best_f1_by_hand():
    """Scores that are equal are taken together; of equal F1, the highest score."""
    scores = np.array([0.5, 0.9, 0.5, 0.2])
    assert best_f1(scores, np.array([True, True, False, False]), 3) == (0.5, 2 / 3, 2 / 3, 2 / 3)
    assert best_f1(scores, np.array([False, True, False, True]), 1) == (0.9, 1.0, 1.0, 1.0)
    # 1 of 1 at 0.9 with 3 boxes, and 2 of 5 at 0.2, would be 0.5 both
    tied = np.array([0.9, 0.8, 0.7, 0.6, 0.2])
    hits = np.array([True, False, False, False, True])
    assert best_f1(tied, hits, 3) == (0.9, 0.5, 1.0, 1 / 3)
    assert best_f1(scores, np.zeros(4, dtype=bool), 3) is None
    assert best_f1(scores[:0], np.zeros(0, dtype=bool), 3) is None


def test_lines_name_their_sets():
    one, two = {"bbox": {"AP": 1.234}}, {"bbox": {"AP": 5.0, "AR": 7.0}}
    dashes = "  ".join(f"{n} -" for n in ("AP50", "AP75", "APs", "APm", "APl"))
    assert summary_lines(one, ["first"]) == [f"first: AP 1.23  {dashes}  AR -"]
    assert summary_lines({"a": one, "bbox": two, "c": {}}, ["a", "bbox", "c"]) == [
        f"a: AP 1.23  {dashes}  AR -",
        f"bbox: AP 5.00  {dashes}  AR 7.00",
    ]
    assert summary_lines(two, ["bbox"]) == [f"bbox: AP 5.00  {dashes}  AR 7.00"]
    assert summary_lines({}, ["a"]) == summary_lines({}, ["a", "b"]) == []


@pytest.fixture(autouse=True)
def catalogs():
    """What an evaluation of files leaves in the catalogs is forgotten."""
    before = set(MetadataCatalog)
    yield
    for name in set(MetadataCatalog) - before:
        MetadataCatalog.pop(name)
        assert name not in DatasetCatalog
