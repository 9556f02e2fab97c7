"""Which classes are taken for which."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from .box_metrics import image_results, indexed


def confusion_matrix(
    evaluation: COCOeval, categories: Sequence[Any], score_threshold: float
) -> np.ndarray:
    """
    What became of each box of the ground truth and of each detection, at an IoU of 0.5.

    First each class by itself, as COCO matches it, so that the diagonal has the hits that AP
    counts. What is left over, of whatever classes, is then matched by pycocotools as if all were
    of one class. Crowd regions, and detections on one of their class, do not count.

    Args:
        evaluation: of :func:`.box_metrics.run_coco`.
        categories: (K,) ids, in the order of the rows and columns; of one that the ground truth
            does not have, they are zero.
        score_threshold: detections below it do not count.

    Returns:
        (K + 1, K + 1) int64: rows are the class of the ground truth, the last one for detections
        where nothing is; columns the class of the detection, the last one for what was missed.
    """
    truth, detected = evaluation.cocoGt.anns, evaluation.cocoDt.anns
    row_of = {category: row for row, category in enumerate(categories)}
    nothing = missed = len(categories)
    matrix = np.zeros((nothing + 1, missed + 1), dtype=np.int64)
    left = {i: a for i, a in truth.items() if not a["iscrowd"] and a["category_id"] in row_of}
    astray = []
    for k, category in enumerate(evaluation.params.catIds):
        if category not in row_of:
            continue
        for image in image_results(evaluation, k):
            for i, score, match, ignored in zip(
                image["dtIds"], image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0]
            ):
                if ignored or score < score_threshold:
                    continue
                if match:
                    matrix[row_of[category], row_of[category]] += 1
                    del left[int(match)]
                else:
                    astray.append(detected[i])
    for box, detection in _pairs(evaluation, list(left.values()), astray):
        row = row_of[box["category_id"]] if box else nothing
        matrix[row, row_of[detection["category_id"]] if detection else missed] += 1
    return matrix


def _pairs(
    evaluation: COCOeval, boxes: list[dict[str, Any]], detections: list[dict[str, Any]]
) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Each box and each detection once, together where they match whatever their classes are."""
    shared = {key: evaluation.cocoGt.dataset[key] for key in ("images", "categories")}
    truth, detected = (indexed({**shared, "annotations": a}) for a in (boxes, detections))
    again = COCOeval(truth, detected, "bbox")
    again.params.useCats = 0
    again.params.iouThrs = evaluation.params.iouThrs[:1]
    again.params.maxDets = [len(detections)]
    again.params.areaRng, again.params.areaRngLbl = [evaluation.params.areaRng[0]], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        again.evaluate()
    pairs: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = []
    left = dict(truth.anns)
    for image in again.evalImgs:
        if image is not None:
            for i, match in zip(image["dtIds"], image["dtMatches"][0]):
                pairs.append((left.pop(int(match)) if match else None, detected.anns[i]))
    return [*pairs, *((box, None) for box in left.values())]
