"""Detections in COCO's format of results: one list of objects with image, category, box, score."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.findings import shown
from ..errors import InputError, MissingFileError
from ..toolbox import Instances
from .ground_truth import GroundTruth

#: (n, 4) boxes (x, y, width, height) in px, (n,) scores and class numbers
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]

#: The name of the file that an evaluation writes.
FILE_NAME = "coco_instances_results.json"


def columns_of(instances: Instances) -> Columns:
    """Of "pred_boxes", "scores" and "pred_classes"."""
    boxes = instances.pred_boxes.tensor.detach().cpu().clone()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.numpy(), *(x.cpu().numpy() for x in (instances.scores, instances.pred_classes))


def results_of(
    image_id: int | str, columns: Columns, category_ids: Mapping[int, int | str]
) -> list[dict[str, Any]]:
    """
    The detections of an image in COCO's format of results.

    Args:
        category_ids: by class number; detections of other classes are left out.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(*(column.tolist() for column in columns))
        if label in category_ids
    ]


def read_detections(path: str, truth: GroundTruth) -> list[dict[str, Any]]:
    """
    Args:
        path: a json file, such as :data:`FILE_NAME`.
        truth: what they are to be compared with.

    Returns:
        {"image_id", "category_id", "bbox": [x, y, width, height] in px, "score"} each.

    Raises:
        MissingFileError: if there is no such file.
        InputError: if it is something else, or not of this data set; names the entry.
    """
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "the file of detections does not exist"
        raise MissingFileError(f"{path}: {what}; correct its path")
    try:
        with open(path, encoding="utf-8") as file:
            detections = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no json that can be read ({error}); write it again") from error
    if not isinstance(detections, list):
        hint = "; a file of annotations comes second" if isinstance(detections, dict) else ""
        raise InputError(
            f"{path}: detections must be a list of objects with image_id, category_id, bbox and "
            f"score, as {FILE_NAME} is, got a {type(detections).__name__}{hint}"
        )
    for place, detection in enumerate(detections):
        wrong = _wrong(detection, truth)
        if wrong:
            raise InputError(f"{path}: detection at place {place}: {wrong}")
    keys = ("image_id", "category_id", "bbox", "score")
    return [{key: detection[key] for key in keys} for detection in detections]


def _wrong(detection: object, truth: GroundTruth) -> str:
    """What is wrong with one detection, and the remedy; "" if nothing is."""
    if not isinstance(detection, dict):
        return f"must be an object, got {shown(detection)}; write the file again"
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in detection:
            return f"{key} is missing (there are: {sorted(detection)[:8]}); add it"
    for key, known, kind in (
        ("image_id", truth.coco.imgs, "images"),
        ("category_id", truth.coco.cats, "categories"),
    ):
        value = detection[key]
        if type(value) not in (int, str) or value not in known:
            return (
                f"{key} {shown(value)} is not among the {len(known)} {kind} of {truth.name} (such "
                f"as {shown(next(iter(known), None))}); compare it with the file that was "
                "predicted on"
            )
    box = detection["bbox"]
    if type(box) is not list or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox must be 4 numbers [x, y, width, height], got {shown(box)}; correct it"
    if not _is_finite(detection["score"]):
        return f"score must be a number, got {shown(detection['score'])}; correct it"
    return ""


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
