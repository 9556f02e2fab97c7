"""Folders of data sets in the layouts of COCO, YOLO and Pascal VOC, recognised by themselves."""

import json
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import InputError, MissingFileError
from .voc_folder import annotation_folder, read_voc, voc_splits
from .yolo_folder import read_yolo, yaml_of, yolo_splits

logger = logging.getLogger(__name__)

#: What folders are called that hold a split.
_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


class Layout(NamedTuple):
    """
    name: of the format.
    splits: "train" and "val", as far as they are told apart; empty if all is one set.
    read: split, or None for all -> (json, folder of images), or the records that a json would have.
    """

    name: str
    splits: list[str]
    read: Callable[[str | None], tuple[str, str] | dict[str, Any]]


def layout_of(path: str) -> Layout:
    """
    Raises:
        MissingFileError: if there is no such folder.
        InputError: if it has none of the three layouts; says what they are.
    """
    yaml_file = yaml_of(path)
    if yaml_file:
        splits = yolo_splits(yaml_file)
        if not splits:
            raise InputError(f"{yaml_file}: names no images: add 'train' or 'val', a folder each")
        return Layout("YOLO", splits, lambda split: read_yolo(yaml_file, split))
    if not os.path.isdir(path):
        raise MissingFileError(f"{path} does not exist: give a json, a data.yaml or a folder")
    found = {split: pair for split in _FOLDERS if (pair := _coco_split(path, split))}
    if found:
        return Layout("COCO", list(found), lambda split: found[split])
    alone = _json_beside_images(path)
    if alone:
        return Layout("COCO", [], lambda split: (alone, path))
    if annotation_folder(path):
        return Layout("Pascal VOC", voc_splits(path), lambda split: read_voc(path, split))
    raise InputError(
        f"{path}: has none of these layouts: COCO (annotations/instances_train.json and train/, or "
        "train/_annotations.coco.json), YOLO (data.yaml), Pascal VOC (Annotations/*.xml and "
        "JPEGImages/). For a json elsewhere, give the json and its folder of images"
    )


def as_coco(path: str, split: str, folder: str) -> tuple[str, str]:
    """
    (json, folder of images) of a split of a data set in any of the layouts.

    Args:
        split: "train" or "val"; a data set without splits is taken as a whole.
        folder: where a json is written for what has none.

    Raises:
        MissingFileError, InputError: see :func:`layout_of`; also if the split is not there.
    """
    layout = layout_of(path)
    if layout.splits and split not in layout.splits:
        raise InputError(
            f"{path}: has the layout of {layout.name}, with {' and '.join(layout.splits)}, but no "
            f"{split}"
        )
    found = layout.read(split if layout.splits else None)
    what = f"{split} of {path}" if layout.splits else path
    if isinstance(found, tuple):
        logger.info(f"{what}: the layout of {layout.name}; {found[0]}, images in {found[1]}")
        return found
    os.makedirs(folder, exist_ok=True)
    json_file = os.path.join(folder, f"{split}.json")
    # Each process of a training writes the same; none reads half of it.
    temporary = f"{json_file}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(found))
    os.replace(temporary, json_file)
    logger.info(f"{what}: the layout of {layout.name}; written as {json_file}")
    return json_file, os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))


def _coco_split(path: str, split: str) -> tuple[str, str] | None:
    """(json, folder of images) of a split: COCO's own layout, or that of exports."""
    for name in _FOLDERS[split]:
        images = os.path.join(path, name)
        if alone := _json_beside_images(images):
            return alone, images
        folder = os.path.join(path, "annotations")
        files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        found = [f for f in files if f.startswith(f"instances_{name}") and f.endswith(".json")]
        if not found:
            continue
        stem = found[0].removeprefix("instances_").removesuffix(".json")
        places = [os.path.join(path, place) for place in (stem, name, f"images/{stem}", "images")]
        place = next((place for place in places if os.path.isdir(place)), path)
        return os.path.join(folder, found[0]), place
    return None


def _json_beside_images(folder: str) -> str | None:
    """The one json in a folder, or the one that exports call so; None if it has no or several."""
    files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in files if name.endswith(".json")]
    named = [name for name in found if name == "_annotations.coco.json"]
    chosen = named or (found if len(found) == 1 else [])
    return os.path.join(folder, chosen[0]) if chosen else None
