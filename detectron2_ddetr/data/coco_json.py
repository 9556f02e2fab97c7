"""Checks of COCO json files, so that a mistake in the data shows before the first iteration."""

import argparse
import gc
import json
import logging
import os
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from ..toolbox import CfgNode, DatasetCatalog, MetadataCatalog, register_coco_instances

logger = logging.getLogger(__name__)

MAX_REPORTED = 10


def check_coco_json(
    json_file: str,
    image_root: str,
    *,
    needs_annotations: bool = True,
    needs_area: bool = False,
) -> None:
    """
    Checks an annotation file and that its images exist. Image contents are not read.

    Boxes without width or height are legal, since COCO's own train2017 has two: they are logged as
    ignored. Boxes partly outside their image are legal too, and clipped in training.

    Args:
        json_file: in COCO's object detection format.
        image_root: the directory that the file names are relative to.
        needs_annotations: whether at least one annotation must be usable, as training wants.
        needs_area: whether annotations must have "area" and "iscrowd", as evaluation wants.

    Raises:
        ValueError: names the file and the first problems found, each with its remedy.
    """
    content = _load(json_file)
    problems: list[str] = []
    categories = _ids(content["categories"], "category", problems, (int,))
    for category in content["categories"]:
        if not isinstance(category.get("name"), str):
            problems.append(f"category {category.get('id')} has no name; add one (a string)")
    _ids(content["images"], "image", problems, (int, str))
    images = _check_images(content["images"], image_root, problems)
    _ids(content["annotations"], "annotation", problems, (int,))
    with_box = [
        annotation
        for annotation in content["annotations"]
        if _annotation_is_sound(annotation, images, categories, needs_area, problems)
    ]
    num_usable = _check_boxes(with_box, images, json_file, problems)
    if needs_annotations and num_usable == 0 and not problems:
        problems.append(
            "no image has a usable annotation (iscrowd 0, a box with area); training would learn "
            "nothing: check that this is the right file"
        )
    if problems:
        shown = "\n".join(f"  {i}. {p}" for i, p in enumerate(problems[:MAX_REPORTED], start=1))
        rest = len(problems) - MAX_REPORTED
        raise ValueError(
            f"{json_file}: {len(problems)} problem(s) found\n{shown}"
            + (f"\n  ... and {rest} more" if rest > 0 else "")
        )


def _load(json_file: str) -> dict[str, list[dict[str, Any]]]:
    """The parsed file, of which the three lists of dicts are there."""
    if not os.path.isfile(json_file):
        raise ValueError(f"{json_file}: the annotation file does not exist; correct its path")
    # Collecting garbage while millions of objects are made doubles the time to read COCO.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:  # covers JSONDecodeError and UnicodeDecodeError
        raise ValueError(
            f"{json_file}: not valid json ({error}); it may be cut off: export or copy it again"
        ) from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(content, dict):
        raise ValueError(
            f"{json_file}: COCO json must be an object with images, annotations and categories, "
            f"got a {type(content).__name__}; detection results are not annotations"
        )
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(
                f"{json_file}: key '{key}' is missing (there are: {sorted(content)[:8]}); export "
                "the data set in COCO's object detection format"
            )
        records = content[key]
        if not isinstance(records, list) or any(not isinstance(r, dict) for r in records):
            raise ValueError(f"{json_file}: '{key}' must be a list of objects; export it again")
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{json_file}: '{key}' is empty; add at least one entry")
    return content


def _ids(
    records: Iterable[dict[str, Any]], kind: str, problems: list[str], types: tuple[type, ...]
) -> set[Hashable]:
    """The ids of all records; missing and repeated ones become problems."""
    seen: set[Hashable] = set()
    wanted = " or ".join(t.__name__ for t in types)
    for number, record in enumerate(records):
        identity = record.get("id")
        if type(identity) not in types:
            problems.append(
                f"{kind} at place {number}: id must be an {wanted}, got {identity!r}; number them"
            )
        elif identity in seen:
            problems.append(f"{kind} id {identity!r} occurs more than once; make the ids unique")
        else:
            seen.add(identity)
    if kind == "annotation" and 0 in seen:
        logger.warning(
            "annotation id 0: pycocotools takes it for 'not matched', so that a detection of this "
            "box counts as false; number the annotations from 1"
        )
    return seen


def _check_images(
    records: list[dict[str, Any]], image_root: str, problems: list[str]
) -> dict[Hashable, dict[str, Any]]:
    """Image records by id, those of sound size only."""
    images = {}
    for record in records:
        identity, name = record.get("id"), record.get("file_name")
        where = f"image {identity!r} ({name})"
        if not isinstance(name, str) or not name:
            problems.append(f"{where}: file_name must be a string; add it")
        elif not os.path.isfile(os.path.join(image_root, name)):
            problems.append(
                f"{where}: no such file in {image_root}; correct the image root or file_name, or "
                "restore the image"
            )
        sizes = (record.get("width"), record.get("height"))
        if any(type(size) is not int or size <= 0 for size in sizes):
            problems.append(
                f"{where}: width and height must be positive integers, got {sizes[0]!r} and "
                f"{sizes[1]!r}; write the size of the image in px"
            )
        elif isinstance(identity, Hashable):
            images[identity] = record
            continue
        if isinstance(identity, Hashable):
            images.setdefault(identity, {})
    return images


def _annotation_is_sound(
    annotation: dict[str, Any],
    images: dict[Hashable, dict[str, Any]],
    categories: set[Hashable],
    needs_area: bool,
    problems: list[str],
) -> bool:
    """True if the values of the box can be looked at; other defects become problems."""
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    bbox = annotation.get("bbox")
    found = []
    if not isinstance(image_id, Hashable) or image_id not in images:
        found.append(f"image_id {image_id!r} is not in 'images'; add the image or remove this")
    if not isinstance(category_id, Hashable) or category_id not in categories:
        found.append(f"category_id {category_id!r} is not in 'categories'; add it or correct it")
    if type(bbox) is not list or len(bbox) != 4 or any(type(v) not in (int, float) for v in bbox):
        found.append(f"bbox must be 4 numbers [x, y, width, height], got {bbox!r}; correct it")
    if annotation.get("iscrowd", 0) not in (0, 1):
        found.append(f"iscrowd must be 0 or 1, got {annotation['iscrowd']!r}; correct it")
    if annotation.get("ignore", 0) != 0:
        found.append("'ignore' is not supported; use iscrowd 1 or remove the annotation")
    if needs_area and not ("area" in annotation and "iscrowd" in annotation):
        found.append("evaluation needs 'area' (px^2) and 'iscrowd' (0 or 1); add them")
    if found:
        where = _where(annotation, images)
        problems.extend(f"{where}: {problem}" for problem in found)
    return not found and bool(images[image_id])


def _where(annotation: dict[str, Any], images: dict[Hashable, dict[str, Any]]) -> str:
    """How a message names an annotation."""
    image_id = annotation.get("image_id")
    record = images.get(image_id, {}) if isinstance(image_id, Hashable) else {}
    return f"annotation {annotation.get('id')!r} of image {image_id!r} ({record.get('file_name')})"


def _check_boxes(
    annotations: list[dict[str, Any]],
    images: dict[Hashable, dict[str, Any]],
    json_file: str,
    problems: list[str],
) -> int:
    """Checks the values of all boxes at once; returns how many annotations can be trained on."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    records = [images[a["image_id"]] for a in annotations]
    width = np.array([r["width"] for r in records], dtype=np.float64)
    height = np.array([r["height"] for r in records], dtype=np.float64)
    x, y, w, h = boxes.T

    finite = np.isfinite(boxes).all(axis=1)
    negative = finite & ((w < 0) | (h < 0))
    empty = finite & ~negative & ((w == 0) | (h == 0))
    with_area = finite & ~negative & ~empty
    outside = with_area & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    rules = (
        (~finite, "has a NaN or infinite value; correct or remove it"),
        (negative, "has a negative width or height; the format is [x, y, width, height]"),
        (outside, "lies wholly outside its image; correct it or the image's width and height"),
    )
    for broken, rule in rules:
        for index in np.flatnonzero(broken):
            record = records[index]
            problems.append(
                f"{_where(annotations[index], images)}: bbox {annotations[index]['bbox']} {rule} "
                f"(width x height = {record['width']} x {record['height']})"
            )
    if empty.any():
        first = [annotations[index]["id"] for index in np.flatnonzero(empty)[:MAX_REPORTED]]
        logger.warning(
            "%s: %d boxes without width or height are ignored; annotation ids %s%s",
            json_file,
            empty.sum(),
            ", ".join(map(str, first)),
            ", ..." if empty.sum() > len(first) else "",
        )
    not_crowd = np.array([a.get("iscrowd", 0) == 0 for a in annotations], dtype=bool)
    return int((with_area & ~outside & not_crowd).sum())


def check_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """
    Checks every data set that `cfg` names, and that the model has as many classes as they do.

    Args:
        eval_only: whether to leave out DATASETS.TRAIN, which need not exist then.

    Raises:
        ValueError: for the first data set with a problem.
    """
    uses = [(name, False) for name in cfg.DATASETS.TEST]
    if not eval_only:
        uses = [(name, True) for name in cfg.DATASETS.TRAIN] + uses
    for name, is_train in uses:
        if name not in DatasetCatalog:
            raise ValueError(
                f"DATASETS: {name!r} is not registered; register it with register_coco_json, or "
                f"use one of {sorted(DatasetCatalog.list())}"
            )
        metadata = MetadataCatalog.get(name)
        json_file = getattr(metadata, "json_file", None)
        if json_file is not None:
            check_coco_json(
                json_file,
                getattr(metadata, "image_root", ""),
                needs_annotations=is_train,
                needs_area=not is_train,
            )
        if getattr(metadata, "thing_classes", None) is None:
            DatasetCatalog.get(name)  # reading the json is what sets the class names
        classes = getattr(MetadataCatalog.get(name), "thing_classes", None)
        num_classes = cfg.MODEL.DETR.NUM_CLASSES
        if classes is not None and len(classes) != num_classes:
            first = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise ValueError(
                f"MODEL.DETR.NUM_CLASSES is {num_classes} but data set {name!r} has "
                f"{len(classes)} classes ({first}); set MODEL.DETR.NUM_CLASSES "
                f"{len(classes)}"
            )


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--dataset`: the arguments of :func:`register_coco_json`, once for each data set."""
    parser.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="register a COCO json and its folder of images under a name; may be repeated",
    )


def register_coco_json(name: str, json_file: str, image_root: str) -> None:
    """
    Checks a COCO json and registers it under `name`; registering the same again does nothing.

    Raises:
        ValueError: if the json has a problem or `name` belongs to other files.
    """
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        before = (getattr(metadata, "json_file", None), getattr(metadata, "image_root", None))
        if [p and os.path.abspath(p) for p in before] != [
            os.path.abspath(p) for p in (json_file, image_root)
        ]:
            raise ValueError(
                f"data set {name!r} is registered with json_file {before[0]} and image_root "
                f"{before[1]}, not {json_file} and {image_root}; choose another name"
            )
        return
    check_coco_json(json_file, image_root, needs_annotations=False)
    register_coco_instances(name, {}, json_file, image_root)
