"""COCO data sets as they are registered: one reading for training, evaluation and the checks."""

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..toolbox import DatasetCatalog, MetadataCatalog, register_coco_instances
from .coco_json import CocoData, read_coco_json
from .coco_records import Identity

logger = logging.getLogger(__name__)

_copies: list[tempfile.TemporaryDirectory] = []


class CocoDataset:
    """
    What DatasetCatalog calls for the dicts of a data set.

    The metadata get `json_file`, as the evaluators of both toolboxes read it: the file itself, or
    a mended copy for pycocotools where the file would be read otherwise than here.
    """

    def __init__(self, name: str, json_file: str, image_root: str | None):
        self.name = name
        self.json_file = json_file
        self.image_root = image_root
        self._order: list[str] | None = None
        self._data: CocoData | None = None
        self._read_at: tuple[int, int] | None = None

    def __call__(self) -> list[dict[str, Any]]:
        self.number_classes(self._order)
        dicts = self.data().dataset_dicts(self.image_root, self._class_map())
        logger.info("%s: %d images, %d usable boxes", self.name, len(dicts), self.data().num_usable)
        return dicts

    def data(self) -> CocoData:
        """
        The content; the file is read when it is asked for first, and after it has changed.

        Raises:
            MissingFileError, InputError: see :func:`read_coco_json`.
        """
        stat = os.stat(self.json_file) if os.path.isfile(self.json_file) else None
        read_at = None if stat is None else (stat.st_mtime_ns, stat.st_size)
        if self._data is None or read_at != self._read_at:
            self._data = read_coco_json(self.json_file, self.image_root, needs_labels=False)
            self._read_at = read_at
        return self._data

    def number_classes(
        self, order: Sequence[str] | None, ids: Sequence[Identity] | None = None
    ) -> None:
        """
        Numbers the classes, and sets the metadata accordingly.

        Args:
            order: names by class number, among them all that annotations of this file have; None
                for the file's own order.
            ids: category ids by class number, for predictions on a file without categories.
        """
        data = self.data()
        self._order = None if order is None else list(order)
        names = data.class_names if order is None else self._order
        if names is None:  # images alone, and nothing is known of the classes
            return
        if data.class_names is not None or ids is None:
            ids = _ids_of(names, data)
        _set(
            self.name,
            thing_classes=list(names),
            thing_dataset_id_to_contiguous_id={i: number for number, i in enumerate(ids)},
            json_file=self.json_file if data.plain else self._write_copy(),
        )

    def _class_map(self) -> list[int] | None:
        names = self.data().class_names
        if self._order is None or names is None:
            return None
        # A class without annotations may be missing from the order.
        numbers = {name: number for number, name in enumerate(self._order)}
        return [numbers.get(name, -1) for name in names]

    def _write_copy(self) -> str:
        """Writes what pycocotools is to read; returns the path, which lasts as the process."""
        data, found = self.data(), self.data().annotations
        content: dict[str, list[dict[str, Any]]] = {}
        content["images"] = [
            {"id": identity, "file_name": file, "width": int(w), "height": int(h)}
            for identity, file, (w, h) in zip(data.image_ids, data.file_names, data.sizes)
        ]
        if found is not None:
            columns = (found.image, found.category, found.boxes, found.area, found.crowd)
            content["annotations"] = [
                {"id": number, "image_id": data.image_ids[image], "bbox": box, "area": area}
                | {"category_id": data.category_ids[category], "iscrowd": int(crowd)}
                for number, (image, category, box, area, crowd) in enumerate(
                    zip(*(column.tolist() for column in columns)), start=1
                )
            ]
        if data.class_names is not None:
            content["categories"] = [
                {"id": i, "name": name} for i, name in zip(data.category_ids, data.class_names)
            ]
        if not _copies:
            _copies.append(tempfile.TemporaryDirectory(prefix="ddetr_annotations_"))
        path = os.path.join(_copies[0].name, f"{self.name.replace(os.sep, '_')}.json")
        with open(path, "w", encoding="utf-8") as file:
            # Not json.dump, which is several times slower.
            file.write(json.dumps(content))
        return path


def _ids_of(names: list[str], data: CocoData) -> list[Any]:
    """Category ids for predictions: the file's own, and for classes that it lacks, new ones."""
    own = dict(zip(data.class_names or (), data.category_ids or ()))
    new = itertools.count(max((i for i in own.values() if isinstance(i, int)), default=0) + 1)
    return [own[name] if name in own else next(new) for name in names]


def _set(name: str, **values: Any) -> None:
    """Sets metadata, which the catalogs do not let be set twice, to something else."""
    metadata = MetadataCatalog.get(name)
    for key, value in values.items():
        if key in vars(metadata):
            delattr(metadata, key)
        setattr(metadata, key, value)


def add_coco_dataset(name: str, json_file: str, image_root: str) -> None:
    """Registers a COCO json without reading it."""
    _add(CocoDataset(name, json_file, image_root))


def _add(dataset: CocoDataset) -> None:
    DatasetCatalog.register(dataset.name, dataset)
    files = {"json_file": dataset.json_file, "image_root": dataset.image_root}
    _set(dataset.name, evaluator_type="coco", **files)


def coco_dataset(name: str) -> CocoDataset | None:
    """
    The COCO data set of that name; None if it is registered as something else.

    One that was registered with detectron2's `register_coco_instances` becomes a
    :class:`CocoDataset`: detectron2's own loader leaves out boxes whose segmentation it cannot
    use, numbers classes by each file's ids, and stops at files that can be mended.
    """
    registered = DatasetCatalog[name]
    if isinstance(registered, CocoDataset):
        return registered
    metadata = MetadataCatalog.get(name)
    json_file = getattr(metadata, "json_file", None)
    made_by = (getattr(registered, "__module__", ""), getattr(registered, "__qualname__", ""))
    if (
        json_file is None
        or "://" in json_file
        or made_by
        != (
            register_coco_instances.__module__,
            f"{register_coco_instances.__qualname__}.<locals>.<lambda>",
        )
    ):
        return None
    dataset = CocoDataset(name, json_file, getattr(metadata, "image_root", ""))
    DatasetCatalog[name] = dataset
    return dataset


def files_of(name: str) -> tuple[str, str] | None:
    """(json, folder of images) of a registered data set as they were given; None if it has none."""
    registered = DatasetCatalog[name] if name in DatasetCatalog else None
    if isinstance(registered, CocoDataset):
        return registered.json_file, registered.image_root
    json_file = getattr(MetadataCatalog.get(name), "json_file", None) if registered else None
    if json_file is None:
        return None
    return json_file, getattr(MetadataCatalog.get(name), "image_root", "")


def register_coco_json(name: str, json_file: str, image_root: str) -> None:
    """
    Checks a COCO json and registers it under `name`; registering the same again does nothing.

    Raises:
        MissingFileError, InputError: see :func:`read_coco_json`; also if `name` belongs to other
            files, or is none.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"the name of a data set must be a word, got {name!r}")
    if name in DatasetCatalog:
        before = files_of(name) or (None, None)
        if [p and os.path.abspath(p) for p in before] != [
            os.path.abspath(p) for p in (json_file, image_root)
        ]:
            raise InputError(
                f"data set {name!r} is registered with json_file {before[0]} and image_root "
                f"{before[1]}, not {json_file} and {image_root}; choose another name"
            )
        return
    dataset = CocoDataset(name, json_file, image_root)
    dataset.data()
    _add(dataset)
    dataset.number_classes(None)
