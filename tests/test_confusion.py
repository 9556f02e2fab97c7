"""The matrix of confusions against a loop written out, and its picture."""

import logging
import re

import cv2
import numpy as np
import pytest

from detectron2_ddetr.engine.box_metrics import box_metrics, indexed, run_coco
from detectron2_ddetr.engine.confusion import confusion_matrix
from detectron2_ddetr.engine.detections_file import FILE_NAME
from detectron2_ddetr.engine.evaluator import build_evaluator
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.visualization import confusion as picture_module
from detectron2_ddetr.visualization.confusion import confusion_of_run, draw_confusion

from .conftest import small_cfg
from .test_evaluate import iou
from .test_evaluator import (  # noqa: F401  (a fixture)
    CATEGORIES,
    feed,
    noisy_detections,
    random_set,
    register,
)

SIZE = [20, 20]


def content_of(boxes):
    """A ground truth of (image, category, [x, y, w, h], is crowd)."""
    images = [{"id": i, "width": 500, "height": 400} for i in sorted({b[0] for b in boxes} | {9})]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box,
         "area": box[2] * box[3], "iscrowd": int(crowd)}
        for number, (image, category, box, crowd) in enumerate(boxes, start=1)
    ]  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def results_of(detections):
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, detection)) for detection in detections]


def matrix_of(content, results, threshold, limit=100, categories=(1, 4, 9)):
    return confusion_matrix(run_coco(indexed(content), results, limit), categories, threshold)


def test_an_example_by_hand():
    """Rows are the ground truth, columns the detections; each kind of fate once or more."""
    a, b, c = 1, 4, 9
    truth = content_of(
        [
            (1, a, [0, 0, *SIZE], False),
            (1, a, [100, 0, *SIZE], False),
            (1, a, [200, 0, *SIZE], False),
            (1, b, [300, 0, *SIZE], False),
            (1, b, [0, 100, *SIZE], False),
            (2, c, [0, 0, *SIZE], False),
            (2, c, [100, 0, *SIZE], False),
            (2, a, [200, 0, 200, 200], True),
        ]
    )
    results = results_of(
        [
            (1, a, [0, 0, *SIZE], 0.9),  # a hit
            (1, b, [1, 0, *SIZE], 0.95),  # better, but another class: nothing is left there
            (1, b, [100, 1, *SIZE], 0.8),  # b for an a
            (1, b, [200, 1, *SIZE], 0.7),  # and once more
            (1, c, [300, 1, *SIZE], 0.6),  # c for a b
            (1, b, [0, 100, *SIZE], 0.3),  # a hit, but below the threshold: missed
            (2, c, [0, 0, *SIZE], 0.5),  # a hit, at the threshold
            (2, c, [1, 0, *SIZE], 0.5),  # of the same box: nothing is left
            (2, a, [0, 300, *SIZE], 0.9),  # where nothing is
            (2, a, [250, 50, *SIZE], 0.9),  # on a crowd of its class: does not count
            (2, b, [250, 50, *SIZE], 0.9),  # on a crowd of another: where nothing is
            (1, c, [100, 0, *SIZE], 0.55),  # a box that b with a higher score has
            (2, c, [109, 0, *SIZE], 0.9),  # too far from its box, 11 / 29
        ]
    )
    assert matrix_of(truth, results, 0.5).tolist() == [
        # a  b  c  missed
        [1, 2, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [1, 2, 3, 0],  # nothing there
    ]
    # In another order of the classes, rows and columns go together.
    assert matrix_of(truth, results, 0.5, categories=(9, 1, 4)).tolist() == [
        [1, 0, 0, 1],
        [0, 1, 2, 0],
        [1, 0, 0, 1],
        [3, 1, 2, 0],
    ]
    assert matrix_of(truth, [], 0.5)[:, -1].tolist() == [3, 2, 2, 0]


def by_hand(content, results, threshold, limit, categories):
    """First each class by itself, then what is left over; the best score takes first."""
    number = {category: i for i, category in enumerate(categories)}
    matrix = np.zeros((len(categories) + 1,) * 2, dtype=int)
    for image in [i["id"] for i in content["images"]]:
        boxes = [a for a in content["annotations"] if a["image_id"] == image and not a["iscrowd"]]
        crowds = [a for a in content["annotations"] if a["image_id"] == image and a["iscrowd"]]
        found = sorted((d for d in results if d["image_id"] == image), key=lambda d: -d["score"])
        astray, free = [], list(boxes)
        for category in categories:
            for d in [d for d in found if d["category_id"] == category][:limit]:
                if d["score"] < threshold:
                    continue
                own = [a for a in free if a["category_id"] == category]
                overlaps = [iou(d["bbox"], a["bbox"]) for a in own]
                if overlaps and max(overlaps) >= 0.5:
                    free.remove(own[int(np.argmax(overlaps))])
                    matrix[number[category], number[category]] += 1
                elif not any(
                    c["category_id"] == category and iou(d["bbox"], c["bbox"], crowd=True) >= 0.5
                    for c in crowds
                ):
                    astray.append(d)
        for d in sorted(astray, key=lambda d: -d["score"]):
            overlaps = [iou(d["bbox"], a["bbox"]) for a in free]
            row = len(categories)
            if overlaps and max(overlaps) >= 0.5:
                row = number[free.pop(int(np.argmax(overlaps)))["category_id"]]
            matrix[row, number[d["category_id"]]] += 1
        for a in free:
            matrix[number[a["category_id"]], -1] += 1
    return matrix


@pytest.mark.parametrize("seed, limit", [(0, 100), (1, 100), (2, 4)])
def test_random_sets(seed, limit):
    """And its sums: each box once, each detection once, and the precision and recall of a table."""
    content = random_set(seed)
    place = {0: 1, 1: 4, 2: 9}
    results = [
        {"image_id": i, "category_id": place[int(c)], "bbox": list(map(float, b)), "score": s}
        for i, boxes, scores, classes in noisy_detections(content, seed)
        for b, s, c in zip(boxes, scores.tolist(), classes)
    ]
    evaluation = run_coco(indexed(content), results, limit)
    metrics = box_metrics(evaluation, {"a": 1, "b": 4, "c": 9})
    for row, best in [*enumerate(metrics.classes), (None, metrics.everything)]:
        best = best.best
        matrix = confusion_matrix(evaluation, [1, 4, 9], best.score)
        assert matrix.tolist() == by_hand(content, results, best.score, limit, [1, 4, 9]).tolist()
        assert matrix[:-1].sum(1).tolist() == [r.boxes for r in metrics.classes]
        hits = matrix.diagonal()[:-1]
        detections = matrix[:, :-1].sum(0)
        if row is None:
            hits, detections, boxes = hits.sum(), detections.sum(), metrics.everything.boxes
        else:
            hits, detections, boxes = hits[row], detections[row], metrics.classes[row].boxes
        assert (best.precision, best.recall) == pytest.approx((hits / detections, hits / boxes))
    assert matrix[0, 1] + matrix[1, 0] + matrix[2, 0] > 0 and (matrix != matrix.T).any()


def cells(picture, count):
    """(count, count, 3): the colour of each cell in a corner, where no number is."""
    # The frame is the only thing that has its grey in a line as long as the cells.
    dark = (picture == 90).all(2)
    rows, columns = (np.flatnonzero(dark.sum(axis) > 200) for axis in (1, 0))
    top, left, side = rows[0], columns[0], rows[-1] - rows[0]
    assert side == columns[-1] - left and side % count == 0
    cell = side // count
    ys, xs = (start + np.arange(count) * cell + 3 for start in (top, left))
    return picture[np.ix_(ys, xs)].astype(int)


@pytest.mark.parametrize("count", [3, 80])
def test_rows_of_the_picture_are_the_ground_truth(count):
    """Orange where a 0 is taken for the last class, blue for hits, white for nothing."""
    matrix = np.zeros((count + 1, count + 1), dtype=int)
    matrix[0, count - 1], matrix[0, 0], matrix[1, count], matrix[count, 1] = 60, 40, 5, 7
    picture = draw_confusion(matrix, [f"class {i}" for i in range(count)], "title")
    assert max(picture.shape) < 3000
    colors = cells(picture, count + 1)
    orange, blue = ((colors[..., 0] - colors[..., 2]) * sign > 50 for sign in (1, -1))
    assert np.argwhere(orange).tolist() == [[0, count - 1], [1, count], [count, 1]]
    assert np.argwhere(blue).tolist() == [[0, 0]]
    # The larger share of the row is the darker; of the last row, that of the column.
    assert colors[0, count - 1].sum() > colors[1, count].sum() == colors[count, 1].sum()


def test_names_and_words(monkeypatch):
    """Names in the order of the rows and of the columns; the ground truth is first in words."""
    labels, said = [], []
    label, lines = picture_module._label, picture_module.text_lines
    monkeypatch.setattr(picture_module, "_label", lambda t, f: labels.append(t) or label(t, f))
    monkeypatch.setattr(picture_module, "text_lines", lambda t, *a: said.append(t) or lines(t, *a))
    matrix = np.array([[0, 12000, 3, 0], [0, 1, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    draw_confusion(matrix, ["cat", "dog", "cow"], "the title")
    names = ["cat", "dog", "cow"]
    assert labels == [*names, "(nothing there)", *names, "(missed)"]
    found = ["cat taken for dog (12000)", "cow taken for cat (4)", "cat taken for cow (3)"]
    assert said[0] == "the title" and said[-1] == f"Most frequent: {', '.join(found)}."


def test_very_many_classes():
    """Those with the most boxes are drawn, in their order; the others are said."""
    count = 400
    matrix = np.diag(np.arange(count + 1))
    matrix[-1, -1] = 0
    picture = draw_confusion(matrix, [f"c{i}" for i in range(count)], "title")
    assert max(picture.shape) < 6000


@pytest.fixture
def run(register, tmp_path):  # noqa: F811
    """A config whose OUTPUT_DIR is that of a training, with detections of its last evaluation."""
    content = random_set()
    truth = register("set", content)
    cfg = small_cfg("OUTPUT_DIR", str(tmp_path / "run"))
    cfg.DATASETS.TEST = ("set",)
    cfg.DATASETS.COCO_JSON = [["set", truth, ""], ["other", truth, ""]]
    feed(build_evaluator(cfg, "set"), noisy_detections(content))
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    (tmp_path / "run" / "last_checkpoint").write_text("model_final.pth")
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    return cfg


def test_confusions_of_a_run(run, tmp_path, monkeypatch):
    drawn = []
    draw = picture_module.draw_confusion
    monkeypatch.setattr(picture_module, "draw_confusion", lambda *a: drawn.append(a) or draw(*a))
    confusion_of_run(run, str(tmp_path / "new" / "confusion.png"))
    picture = cv2.imread(str(tmp_path / "new" / "confusion.png"))
    assert picture.std() > 5
    ((matrix, names, title),) = drawn
    assert names == ["a", "b", "c"] and title.startswith("set: detections with a score >= 0.")
    assert 0 < matrix.trace() < matrix.sum()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="folder.png: cannot be written"):
        confusion_of_run(run, str(tmp_path / "folder.png"))


def test_confusions_of_an_evaluation_alone(run, tmp_path, caplog):
    """As `make demo-pretrained` leaves a folder: no checkpoint, and an address in its config."""
    (tmp_path / "run" / "last_checkpoint").unlink()
    run.MODEL.WEIGHTS = "package://detectron2_ddetr/model_zoo/weights/quick_start.pth"
    (tmp_path / "run" / "config.yaml").write_text(run.dump())
    confusion_of_run(run, str(tmp_path / "confusion.png"))
    assert (tmp_path / "confusion.png").exists()
    assert "no confusions are drawn" not in caplog.text
    run.MODEL.WEIGHTS = "package://detectron2_ddetr/model_zoo/weights/other.pth"
    confusion_of_run(run, str(tmp_path / "other.png"))
    assert "is not of MODEL.WEIGHTS package" in caplog.text
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("case", ["none", "weights", "set", "files", "no hit", "no labels"])
def test_confusions_that_would_not_be_of_this_model(run, tmp_path, case, caplog, register):  # noqa
    folder, words = tmp_path / "run", "is not of the data set"
    if case == "none":
        (folder / FILE_NAME).unlink()
        words = "There are no detections in .*coco_instances_results.json"
    elif case == "weights":
        run.MODEL.WEIGHTS = str(folder / "model_best.pth")
        words = "coco_instances_results.json is not of MODEL.WEIGHTS .*model_best.pth"
    elif case == "set":
        run.DATASETS.TEST = ("other",)
    elif case == "files":
        run.DATASETS.COCO_JSON = [["set", str(folder / "set.json"), ""]]
    elif case == "no hit":
        (folder / FILE_NAME).write_text("[]")
        words = "there is no hit"
    else:
        register("unlabelled", {**random_set(), "annotations": []})
        run.DATASETS.TEST = ("unlabelled",)
        (folder / "config.yaml").write_text(run.dump())
        words = "unlabelled has no annotations"
    with caplog.at_level(logging.WARNING):
        confusion_of_run(run, str(tmp_path / "confusion.png"))
    assert re.search(f"{words}.*, so no confusions are drawn", caplog.text)
    assert not (tmp_path / "confusion.png").exists()
