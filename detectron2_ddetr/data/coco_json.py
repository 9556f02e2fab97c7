"""COCO json files: read and checked in one go, so that a mistake shows before the first step."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..toolbox import BoxMode
from .box_checks import check_boxes
from .coco_annotations import Annotations, read_annotations
from .coco_file import parse_coco_file
from .coco_records import (
    Identity,
    order_of_ids,
    read_category_names,
    read_file_names,
    read_ids,
    read_sizes,
)
from .file_names import check_image_files
from .findings import Findings, listed, shown

logger = logging.getLogger(__name__)


@dataclass
class CocoData:
    """A COCO json whose every field is sound, in columns: a fraction of the parsed file's size."""

    json_file: str
    image_ids: list[Identity]
    file_names: list[str]
    #: (N, 2) int64 width and height of each image, px; 0, 0 where the file does not say it
    sizes: np.ndarray
    #: in the order of the ids, which numbers the classes; None if the file has no categories
    category_ids: list[Identity] | None
    class_names: list[str] | None
    #: None if the file has none; `category` is the class number
    annotations: Annotations | None
    #: whether pycocotools would read the same from the file itself
    plain: bool
    notes: list[tuple[str, str]]

    @property
    def num_usable(self) -> int:
        """How many boxes can be trained on: with an area, and no crowd."""
        found = self.annotations
        return 0 if found is None else int((found.with_area & ~found.crowd).sum())

    @property
    def num_without_area(self) -> int:
        """How many boxes are left out because there is nothing to learn from."""
        found = self.annotations
        return 0 if found is None else int((~found.with_area & ~found.crowd).sum())

    def class_counts(self) -> list[int]:
        """The number of annotations of each class."""
        if self.annotations is None or self.class_names is None:
            return [0] * len(self.class_names or ())
        return np.bincount(self.annotations.category, minlength=len(self.class_names)).tolist()

    def say(self, audience: str) -> None:
        """Logs what was noted, once: audience is "train", "test", or "all" for everybody's."""
        said = [note for note in self.notes if audience == "all" or note[0] in ("all", audience)]
        self.notes = [note for note in self.notes if note not in said]
        for _, text in said:
            logger.warning(text)

    def check_usable(self) -> None:
        """
        Raises:
            InputError: if there is nothing to train on.
        """
        if self.num_usable == 0:
            raise InputError(
                f"{self.json_file}: no image has a usable annotation (iscrowd 0, a box with "
                "area); training would learn nothing: check that this is the right file"
            )

    def dataset_dicts(self, image_root: str, class_map: list[int] | None) -> list[dict[str, Any]]:
        """
        detectron2's standard dicts, in the order of the image ids; without "annotations" if the
        file has none.

        Args:
            class_map: the number that each class of the file gets; None to keep it.
        """
        annotations: list[list[dict[str, Any]]] = [[] for _ in self.image_ids]
        found = self.annotations
        if found is not None and len(found.ids):
            keep = np.flatnonzero(found.with_area)
            classes = found.category if class_map is None else np.array(class_map)[found.category]
            columns = (found.image, classes, found.boxes, found.crowd.astype(np.int64))
            for image, category, box, crowd in zip(*(c[keep].tolist() for c in columns)):
                annotations[image].append(
                    {"iscrowd": crowd, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
                    | {"category_id": category}
                )
        dicts = []
        for i in order_of_ids(self.image_ids):
            record = {"file_name": os.path.join(image_root, self.file_names[i])}
            record["image_id"] = self.image_ids[i]
            if found is not None:
                record["annotations"] = annotations[i]
            if self.sizes[i].all():
                record |= {"width": int(self.sizes[i, 0]), "height": int(self.sizes[i, 1])}
            dicts.append(record)
        return dicts


def read_coco_json(
    json_file: str, image_root: str | None, *, needs_labels: bool = True
) -> CocoData:
    """
    Reads and checks an annotation file, and that its images exist. No image is opened.

    "segmentation" is not looked at, and a field that only evaluation wants is mended if that can
    be done: then it is noted.

    Args:
        json_file: in COCO's object detection format.
        image_root: the folder that the file names are relative to; None not to look for them.
        needs_labels: whether there must be annotations and categories, as there need not be for
            prediction.

    Raises:
        MissingFileError: if the file or the folder does not exist.
        InputError: names the file and the first of each kind of problem, with its remedy.
    """
    content, plain = parse_coco_file(json_file, needs_labels=needs_labels)
    findings = Findings(json_file)
    records = content["images"]
    image_ids, images_plain = read_ids(records, "image", findings)
    names = [f"image {shown(r.get('id'))} ({r.get('file_name')})" for r in records]
    file_names = read_file_names(records, names, findings)
    labelled = content["annotations"] is not None
    sizes = read_sizes(records, names, labelled, findings)
    if image_root is not None:
        check_image_files(image_ids, file_names, image_root, findings)
    data = CocoData(json_file, image_ids, file_names, sizes, None, None, None, True, findings.notes)
    categories_plain = annotations_plain = True
    if content["categories"] is not None:
        categories_plain = _read_categories(data, content["categories"], findings)
    if labelled:
        annotations_plain = _read_annotations(data, content["annotations"], names, findings)
    findings.raise_problems()
    if labelled:
        _leave_out_parents(data, content["categories"] or (), findings)
        _note_unused_categories(data, findings)
    data.plain = plain and images_plain and categories_plain and annotations_plain
    return data


def _read_categories(data: CocoData, records: list[dict[str, Any]], findings: Findings) -> bool:
    """Fills in ids and names in the order of the ids; whether the file has them as they are."""
    ids, plain = read_ids(records, "category", findings)
    names = read_category_names(records, ids, findings)
    order = range(len(ids)) if findings.has_problems else order_of_ids(ids)
    data.category_ids = [ids[i] for i in order]
    data.class_names = [names[i] for i in order]
    return plain and all(isinstance(identity, int) for identity in ids)


def _read_annotations(
    data: CocoData, records: list[dict[str, Any]], names: list[str], findings: Findings
) -> bool:
    """Fills in the annotations; whether the file has them as they are."""

    def name_of(place: int) -> str:
        image = found_places.get(_hashable(records[place].get("image_id")))
        image_id = shown(records[place].get("image_id"))
        file = data.file_names[image] if image is not None else None
        return f"annotation {shown(records[place].get('id'))} of image {image_id} ({file})"

    found_places = {identity: i for i, identity in enumerate(data.image_ids)}
    categories = {identity: i for i, identity in enumerate(data.category_ids or ())}
    found = read_annotations(records, found_places, categories, name_of, findings)
    check_boxes(found, data.sizes, name_of, findings)
    data.annotations = found
    return found.plain


def _hashable(value: object) -> object:
    return value if isinstance(value, (int, float, str)) else None


def _leave_out_parents(
    data: CocoData, records: Sequence[dict[str, Any]], findings: Findings
) -> None:
    """A category without annotations that others name as their parent is no class: exports have
    it to say what all of them are."""
    named = {r.get("supercategory") for r in records if r.get("supercategory") != r.get("name")}
    own = {r.get("name") for r in records if r.get("supercategory") == r.get("name")}
    counts = data.class_counts()
    out = [
        count == 0 and name in named and name not in own
        for name, count in zip(data.class_names or (), counts)
    ]
    if not any(out) or sum(counts) == 0:
        return
    parents = [f"{name!r}" for name, is_out in zip(data.class_names, out) if is_out]
    findings.note(
        f"left out of the classes: {listed(parents)}, which the others name as their "
        "supercategory, and of which there is no annotation"
    )
    kept = np.flatnonzero(~np.array(out))
    data.class_names = [data.class_names[i] for i in kept]
    data.category_ids = [data.category_ids[i] for i in kept]
    numbers = np.cumsum(~np.array(out)) - 1
    data.annotations.category = numbers[data.annotations.category]


def _note_unused_categories(data: CocoData, findings: Findings) -> None:
    counts = data.class_counts()
    unused = [
        f"{name!r} (id {identity!r})"
        for name, identity, count in zip(data.class_names or (), data.category_ids or (), counts)
        if count == 0
    ]
    if unused and len(unused) < len(counts):
        findings.note(
            f"{len(unused)} of {len(counts)} categories have no annotation: {listed(unused)}. "
            "Each is a class nevertheless, for which nothing is learned",
            "train",
        )
