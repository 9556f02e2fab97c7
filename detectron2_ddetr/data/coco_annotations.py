"""Annotations of a COCO json, column by column: boxes, crowds, areas and ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .coco_records import MAX_SIZE, find_places
from .findings import Findings, counted, listed, shown

#: From here on a float does not tell ids apart, and pycocotools keeps them as floats.
MAX_ID = 2**53


@dataclass
class Annotations:
    """What the annotations of a file say, as A rows in their order."""

    #: (A,) places of the image and of the category, -1 where there is none
    image: np.ndarray
    category: np.ndarray
    #: (A, 4) x, y, width, height in px
    boxes: np.ndarray
    #: (A,) bool
    crowd: np.ndarray
    #: (A,) px^2, never negative
    area: np.ndarray
    #: (A,) bool: rows whose fields can be used, and those of them whose box has an area
    sound: np.ndarray
    with_area: np.ndarray
    ids: list[Any]
    #: (A,) px^2 as the file has it, NaN where it is no number >= 0
    said_area: np.ndarray
    #: whether pycocotools would read the same from the file
    plain: bool


def read_annotations(
    records: Sequence[dict[str, Any]],
    image_places: dict[Any, int],
    category_places: dict[Any, int],
    name_of: Callable[[int], str],
    findings: Findings,
) -> Annotations:
    """
    Reads all annotations; what cannot be used becomes a problem.

    Args:
        image_places, category_places: the place of each record by its id.
        name_of: how messages name the annotation at a place.
    """
    image, image_texts = find_places((r.get("image_id") for r in records), image_places)
    category, category_texts = find_places((r.get("category_id") for r in records), category_places)
    for key, found, texts in (
        ("image_id", image, image_texts),
        ("category_id", category, category_texts),
    ):
        if texts:
            findings.note(
                f"{key} of {counted(texts, 'annotation')} is a number where the id is a text, or "
                "the other way round; they are taken for the same"
            )
        where, remedy = (
            ("'images'", "add the image or remove this")
            if key == "image_id"
            else ("'categories'", "add it or correct it")
        )
        for i in np.flatnonzero(np.less(found, 0)):
            value = shown(records[i].get(key))
            findings.problem(key, name_of(i), f"{key} {value} is not in {where}; {remedy}")
    boxes, boxed = _read_boxes(records, name_of, findings)
    crowd, crowd_plain, crowd_sound = _read_crowds(records, name_of, findings)
    for i, record in enumerate(records):
        if record.get("ignore"):
            findings.problem(
                "ignore",
                name_of(i),
                "'ignore' is not supported; use iscrowd 1 or remove the annotation",
            )
    image, category = np.array(image, dtype=np.int64), np.array(category, dtype=np.int64)
    sound = boxed & crowd_sound & (image >= 0) & (category >= 0)
    said, area_plain = _read_areas(records, boxes, sound, name_of, findings)
    ids = [record.get("id") for record in records]
    return Annotations(
        image=image,
        category=category,
        boxes=boxes,
        crowd=crowd,
        area=np.where(np.isnan(said), boxes[:, 2] * boxes[:, 3], said),
        sound=sound,
        with_area=sound,
        ids=ids,
        said_area=said,
        plain=not (image_texts or category_texts)
        and crowd_plain
        and area_plain
        and _ids_are_plain(ids, findings),
    )


def _read_boxes(
    records: Sequence[dict[str, Any]], name_of: Callable[[int], str], findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """(A, 4) float64, zeros where there is no box, and (A,) bool: where there is one."""
    raw = [record.get("bbox") for record in records]
    boxed = np.array([type(b) is list and len(b) == 4 for b in raw], dtype=bool)
    numbers = {int, float}
    # One look at all values at once: only a file with a fault is looked at box by box.
    if not set(map(type, chain.from_iterable(b for b, ok in zip(raw, boxed) if ok))) <= numbers:
        boxed &= [type(b) is list and set(map(type, b)) <= numbers for b in raw]
    for i in np.flatnonzero(~boxed):
        findings.problem(
            "bbox",
            name_of(i),
            f"bbox must be 4 numbers [x, y, width, height], got {shown(raw[i])}; correct it, or "
            "remove the annotation",
        )
    filled = [b if ok else (0, 0, 0, 0) for b, ok in zip(raw, boxed)]
    try:
        boxes = np.array(filled, dtype=np.float64)
    except OverflowError:  # ints of hundreds of digits
        boxes = np.array([[min(max(v, -1e300), 1e300) for v in b] for b in filled])
    boxes = boxes.reshape(-1, 4)
    for kind, rule, broken in (
        ("finite", "has a NaN or infinite value; correct or remove it", ~np.isfinite(boxes)),
        ("huge", f"has a value beyond {MAX_SIZE} px; correct or remove it", abs(boxes) > MAX_SIZE),
    ):
        rows = np.flatnonzero(broken.any(axis=1) & boxed)
        for i in rows:
            findings.problem(kind, name_of(i), f"bbox {shown(raw[i])} {rule}")
        boxed[rows] = False
        boxes[rows] = 0
    return boxes, boxed


def _read_crowds(
    records: Sequence[dict[str, Any]], name_of: Callable[[int], str], findings: Findings
) -> tuple[np.ndarray, bool, np.ndarray]:
    """(A,) bool; whether each record says it; (A,) bool: where it can be understood."""
    raw = [record.get("iscrowd") for record in records]
    sound = np.array([v is None or type(v) in (int, bool, float) and v in (0, 1) for v in raw])
    sound = sound.astype(bool)  # also of no annotation
    for i in np.flatnonzero(~sound):
        findings.problem(
            "iscrowd", name_of(i), f"iscrowd must be 0 or 1, got {shown(raw[i])}; correct it"
        )
    missing = raw.count(None)
    if missing:
        said = counted(missing, "annotation")
        findings.note(f"iscrowd is missing in {said}; it is taken for 0", "test")
    return np.array([ok and v == 1 for v, ok in zip(raw, sound)], dtype=bool), not missing, sound


def _read_areas(
    records: Sequence[dict[str, Any]],
    boxes: np.ndarray,
    sound: np.ndarray,
    name_of: Callable[[int], str],
    findings: Findings,
) -> tuple[np.ndarray, bool]:
    """(A,) float64, NaN for what is no number >= 0, and whether none is."""
    raw = [record.get("area") for record in records]
    said = np.array([_area_of(value) for value in raw], dtype=np.float64)
    unusable = np.isnan(said)
    instead = "evaluation takes width x height of the box"
    missing = sum(value is None for value in raw)
    if missing:
        findings.note(f"area is missing in {counted(missing, 'annotation')}; {instead}", "test")
    odd = [i for i in np.flatnonzero(unusable) if raw[i] is not None]
    if odd:
        findings.note(
            f"area is no number >= 0 in {counted(len(odd), 'annotation')} (first: "
            f"{name_of(odd[0])}: {shown(raw[odd[0]])}); {instead}",
            "test",
        )
    usable = sound & ~unusable
    if usable.any() and np.ptp(said[usable]) == 0:
        sizes = boxes[usable, 2] * boxes[usable, 3]
        if np.ptp(sizes) > 1:
            findings.note(
                f"area is {said[usable][0]:g} in all annotations, although their boxes are "
                f"{sizes.min():g} to {sizes.max():g} px^2; {instead}",
                "test",
            )
            said[:] = np.nan
            unusable[:] = True
    return said, not unusable.any()


def _area_of(value: object) -> float:
    if type(value) in (int, float) and 0 <= value < float("inf"):
        return min(value, 1e300)
    return float("nan")


def _ids_are_plain(ids: list[Any], findings: Findings) -> bool:
    """
    Whether pycocotools can tell the annotations apart by their ids.

    It keeps them as floats, and takes 0 for "not matched".
    """
    wrong = [v for v in ids if type(v) is not int or not 0 < v < MAX_ID]
    unique = len(set(ids)) if not wrong else 0
    if wrong:
        rule = f"integers from 1 on, {len(wrong)} of {len(ids)} are not"
        rule += f" ({listed([shown(v) for v in wrong], 3)})"
    elif unique < len(ids):
        rule = f"unique, {len(ids) - unique} of {len(ids)} occur before"
    else:
        return True
    findings.note(
        f"annotation ids should be {rule}; evaluation numbers the annotations anew", "test"
    )
    return False
