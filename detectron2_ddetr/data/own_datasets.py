"""Data sets that a user's function makes: the standard dicts, checked as a json is."""

import math
from numbers import Integral, Real
from typing import Any

from ..errors import InputError
from ..toolbox import BoxMode, DatasetCatalog, MetadataCatalog
from .findings import Findings, listed, shown


def check_own_dataset(name: str, num_classes: int, *, needs_annotations: bool) -> None:
    """
    Checks the dicts of a registered data set.

    Args:
        num_classes: classes of the model, for a data set without thing_classes.
        needs_annotations: whether it is trained on; without, "annotations" may be missing.

    Raises:
        InputError: names the data set and the first of each kind of problem.
    """
    dicts = DatasetCatalog.get(name)
    classes = getattr(MetadataCatalog.get(name), "thing_classes", None)
    if not isinstance(dicts, list) or not dicts:
        raise InputError(f"data set {name!r}: its function must return a list of dicts, not empty")
    number = num_classes if classes is None else len(classes)
    known = f" ({listed(classes)})" if classes else ""
    findings = Findings(f"data set {name!r}")
    for place, record in enumerate(dicts):
        if not isinstance(record, dict) or "file_name" not in record:
            findings.problem("dict", f"item {place}", "it must be a dict with 'file_name'")
            continue
        where = f"image {shown(record.get('image_id', place))} ({record['file_name']})"
        if needs_annotations and "annotations" not in record:
            findings.problem("annotations", where, "key 'annotations' is missing; [] if no object")
        for annotation in record.get("annotations") or ():
            for kind, text in _faults(annotation, number, known):
                findings.problem(kind, where, text)
    findings.raise_problems()


def _faults(annotation: Any, num_classes: int, known: str) -> list[tuple[str, str]]:
    """(kind, text) of what is wrong with an annotation."""
    if not isinstance(annotation, dict):
        return [("annotation", f"an annotation must be a dict, got {shown(annotation)}")]
    faults = []
    category = annotation.get("category_id")
    whole = isinstance(category, Integral) and not isinstance(category, bool)
    if not whole or not 0 <= category < num_classes:
        faults.append(
            (
                "category_id",
                f"category_id must be an integer from 0 to {num_classes - 1}{known}, got "
                f"{shown(category)}; number the classes from 0 on",
            )
        )
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    try:
        box = list(box)
        good = len(box) == 4 and all(isinstance(v, Real) and math.isfinite(v) for v in box)
    except TypeError:
        good = False
    if not good:
        faults.append(("bbox", f"bbox must be 4 finite numbers, got {shown(box)}"))
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        faults.append(
            ("mode", f"bbox_mode must be BoxMode.XYXY_ABS or XYWH_ABS, got {shown(mode)}")
        )
    elif good:
        sides = box[2:] if mode == BoxMode.XYWH_ABS else (box[2] - box[0], box[3] - box[1])
        if min(sides) < 0:
            faults.append(("negative", f"bbox {shown(box)} has a negative width or height"))
    return faults
