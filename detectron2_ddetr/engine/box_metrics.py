"""COCO's figures of detections in one data set: as a whole, by class, and where F1 is best."""

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: Place along the IoU thresholds 0.5, 0.55, ..., 0.95 (None: all) and along COCO's area ranges.
_METRICS = {
    "AP": (None, 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}
#: A longer name of a class is cut in a table.
_MAX_NAME = 32


class BestF1(NamedTuple):
    """Detections from the score on, at the score with the highest F1; IoU of at least 0.5."""

    score: float
    f1: float
    precision: float
    recall: float


class ClassMetrics(NamedTuple):
    """AP and AR in percent; None for what there is no ground truth of."""

    name: str
    #: of the ground truth, without crowd regions
    boxes: int
    ap: float | None
    ap50: float | None
    #: with as many detections per image as count
    ar: float | None
    #: None also if there is no hit at any score
    best: BestF1 | None


class BoxMetrics(NamedTuple):
    """What an evaluation found."""

    #: "AP", "AP50", "AP75", "APs", "APm", "APl" and "AR" in percent; None without ground truth
    summary: dict[str, float | None]
    #: "AR1" and "AR10": with so many detections of a class per image
    recalls: dict[str, float | None]
    classes: list[ClassMetrics]
    #: all classes together: `best` is of one score for all of them
    everything: ClassMetrics
    #: so many detections of a class per image count
    limit: int

    def results(self) -> dict[str, float]:
        """The figures that exist, by name; with "AP-<class>" if there are several classes."""
        figures = dict(self.summary)
        if len(self.classes) > 1:
            figures |= {f"AP-{row.name}": row.ap for row in self.classes}
        return {name: value for name, value in figures.items() if value is not None}

    def table(self) -> str:
        """A heading, a line for each class, and one for all of them."""
        rows = [_cells(row) for row in self.classes]
        if len(rows) > 1:
            rows.append(_cells(self.everything))
        heading = ["class", "boxes", "AP", "AP50", "AR", "best F1", "at score", "precision"]
        cells = [[*heading, "recall"], *rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [
            "  ".join([f"{line[0]:<{widths[0]}}", *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        ]
        recalls = ", ".join(f"{n} {v:.2f}" for n, v in self.recalls.items() if v is not None)
        return "\n".join([f"at most {self.limit} detections per image ({recalls}):", *lines])

    def write_csv(self, path: str) -> None:
        """A line for each class with all digits; an empty cell for what there is not."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "boxes", "AP", "AP50", "AR", *BestF1._fields])
            for row in self.classes:
                writer.writerow([*row[:5], *(row.best or ())])


def summary_line(results: Mapping[str, float]) -> str:
    """
    One line of the figures of all classes together.

    Args:
        results: see :meth:`BoxMetrics.results`; a dash for what it lacks.
    """
    names = [*_METRICS, "AR"]
    return "  ".join(f"{n} {results[n]:.2f}" if n in results else f"{n} -" for n in names)


def summary_lines(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """
    :func:`summary_line` for each data set, with its name.

    Args:
        results: of a whole evaluation, by data set where there is not one of the `names` alone.
    """
    found = results if len(names) != 1 else {names[0]: results}
    return [f"{n}: {summary_line(r['bbox'])}" for n, r in found.items() if "bbox" in r]


def run_coco(coco: COCO, results: list[dict[str, Any]], limit: int) -> COCOeval:
    """
    Matches and accumulates.

    Args:
        coco: the ground truth; annotation ids from 1 on.
        results: detections in COCO's format.
        limit: so many detections of each class and image count.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, indexed(_as_annotations(results, coco)), "bbox")
        evaluation.params.maxDets = [1, min(10, limit), limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def box_metrics(evaluation: COCOeval, classes: Mapping[str, Any]) -> BoxMetrics:
    """
    Args:
        evaluation: of :func:`run_coco`.
        classes: category id by name, in the order of the table; None, or one that the ground
            truth does not have, for a class that is not there.
    """
    # (IoU threshold, recall, category, area range, limit), -1 where there is no ground truth.
    precision = evaluation.eval["precision"][..., -1]
    recall = evaluation.eval["recall"]  # (IoU threshold, category, area range, limit)
    summary = {
        name: _percent(precision[slice(None) if iou is None else iou, ..., area])
        for name, (iou, area) in _METRICS.items()
    }
    summary["AR"] = _percent(recall[:, :, 0, -1])
    recalls = {
        f"AR{n}": _percent(recall[:, :, 0, i]) for i, n in enumerate(evaluation.params.maxDets[:-1])
    }
    places = {category: k for k, category in enumerate(evaluation.params.catIds)}
    rows, pooled = [], []
    for name, category in classes.items():
        k = places.get(category)
        if k is None:
            rows.append(ClassMetrics(name, 0, None, None, None, None))
            continue
        detections, boxes = scored_hits(evaluation, k)
        pooled.append((*detections, boxes))
        rows.append(
            ClassMetrics(
                name,
                boxes,
                _percent(precision[:, :, k, 0]),
                _percent(precision[0, :, k, 0]),
                _percent(recall[:, k, 0, -1]),
                best_f1(*detections, boxes),
            )
        )
    boxes = sum(row.boxes for row in rows)
    best = None
    if pooled:
        scores, hits = (np.concatenate([p[i] for p in pooled]) for i in (0, 1))
        best = best_f1(scores, hits, boxes)
    figures = (summary[name] for name in ("AP", "AP50", "AR"))
    everything = ClassMetrics("(all)", boxes, *figures, best)
    return BoxMetrics(summary, recalls, rows, everything, evaluation.params.maxDets[-1])


def image_results(evaluation: COCOeval, k: int) -> list[dict[str, Any]]:
    """What pycocotools found in each image for the category at place k, boxes of any size."""
    params = evaluation.params
    first = k * len(params.areaRng) * len(params.imgIds)
    found = evaluation.evalImgs[first : first + len(params.imgIds)]
    return [result for result in found if result is not None]


def scored_hits(evaluation: COCOeval, k: int) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """
    The detections of the category at place k, at an IoU of 0.5, without those on crowd regions.

    Returns:
        ((scores, hits), boxes): (T,) float64 and (T,) bool; the number of boxes to be found.
    """
    found = image_results(evaluation, k)
    scores = np.concatenate([np.zeros(0), *(r["dtScores"] for r in found)])
    hits = np.concatenate([np.zeros(0), *(r["dtMatches"][0] for r in found)]) > 0
    counts = ~np.concatenate([np.zeros(0, dtype=bool), *(r["dtIgnore"][0] for r in found)])
    boxes = sum(int(np.count_nonzero(r["gtIgnore"] == 0)) for r in found)
    return (scores[counts], hits[counts]), boxes


def best_f1(scores: np.ndarray, hits: np.ndarray, boxes: int) -> BestF1 | None:
    """
    Args:
        scores, hits: (T,), of each detection.
        boxes: how many were to be found.

    Returns:
        The highest of the scores whose F1 is the best; None if there is no hit.
    """
    if not hits.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(hits[order])
    taken = np.arange(1, len(scores) + 1)
    # Detections of the same score are taken together.
    last = np.append(scores[1:] != scores[:-1], True)
    f1 = np.where(last, 2 * found / (taken + boxes), -1)
    i = int(np.argmax(f1))
    return BestF1(
        float(scores[i]), float(f1[i]), float(found[i] / taken[i]), float(found[i] / boxes)
    )


def indexed(content: dict[str, list[dict[str, Any]]]) -> COCO:
    """`content` as pycocotools wants it."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _as_annotations(results: list[dict[str, Any]], coco: COCO) -> dict[str, list[dict[str, Any]]]:
    """Detections in the form of a COCO data set, of which COCOeval matches pairs."""
    annotations = [
        {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for number, result in enumerate(results, start=1)
    ]
    shared = {key: coco.dataset[key] for key in ("images", "categories")}
    return {**shared, "annotations": annotations}


def _percent(values: np.ndarray) -> float | None:
    """Mean of the values that are not -1, times 100; None if there is none."""
    values = values[values > -1]
    return float(100 * values.mean()) if values.size else None


def _cells(row: ClassMetrics) -> list[str]:
    name = row.name if len(row.name) <= _MAX_NAME else row.name[: _MAX_NAME - 3] + "..."
    figures = ["-" if value is None else f"{value:.2f}" for value in row[2:5]]
    best = ["-"] * 4
    if row.best is not None:
        best = [f"{v:.3f}" for v in (row.best.f1, row.best.score, *row.best[2:])]
    return [name, str(row.boxes), *figures, *best]
