"""Datasets by name, COCO json files and the loader for evaluation."""

import functools
import logging
import os
import pickle
import types
from collections import UserDict
from typing import Any, Callable

import numpy as np
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Dataset

from . import comm
from .config import CfgNode
from .structures import BoxMode

logger = logging.getLogger("detectron2.data")


class _DatasetCatalog(UserDict):
    """Functions that return the list of dicts of a dataset, by name; `get` calls them."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> list[dict]:
        return self[name]()

    def list(self) -> list[str]:
        return list(self)

    def remove(self, name: str) -> None:
        self.pop(name)


class Metadata(types.SimpleNamespace):
    """Attributes of a dataset that can be set, but not changed."""

    def set(self, **kwargs: Any) -> "Metadata":
        for key, val in kwargs.items():
            old = vars(self).setdefault(key, val)
            assert old == val, f"'{key}' of '{self.name}' cannot be changed from {old} to {val}"
        return self


class _MetadataCatalog(UserDict):
    """The metadata of each dataset, by name, empty if there is none yet."""

    def get(self, name: str) -> Metadata:
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()


def load_coco_json(json_file: str, image_root: str, dataset_name: str) -> list[dict]:
    """Load boxes, images sorted by id; class names and contiguous ids get into the metadata."""
    coco = COCO(json_file)
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    id_map = {category_id: i for i, category_id in enumerate(sorted(names))}
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[names[i] for i in id_map], thing_dataset_id_to_contiguous_id=id_map
    )
    logger.info(f"Loaded {len(coco.imgs)} images in COCO format from {json_file}")
    dataset_dicts = []
    for image_id, image in sorted(coco.imgs.items()):
        annotations = [
            {key: anno[key] for key in ("iscrowd", "bbox") if key in anno}
            | {"bbox_mode": BoxMode.XYWH_ABS, "category_id": id_map[anno["category_id"]]}
            for anno in coco.imgToAnns[image_id]
            if _is_valid(anno.get("segmentation", []))
        ]
        record = {"image_id": image_id, "height": image["height"], "width": image["width"]}
        file_name = os.path.join(image_root, image["file_name"])
        dataset_dicts.append(record | {"file_name": file_name, "annotations": annotations})
    return dataset_dicts


def _is_valid(segmentation: dict | list) -> bool:
    """False for what detectron2 leaves out, even if only its box is of interest."""
    polygons = [] if isinstance(segmentation, dict) else segmentation
    return not polygons or any(len(p) % 2 == 0 and len(p) >= 6 for p in polygons)


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a dataset in COCO's format; its files are read when it is asked for."""
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    metadata = metadata | {"json_file": json_file, "image_root": image_root}
    MetadataCatalog.get(name).set(evaluator_type="coco", **metadata)


_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _split in ("train", "val"):
    _json_file = f"{_ROOT}/coco/annotations/instances_{_split}2017.json"
    register_coco_instances(f"coco_2017_{_split}", {}, _json_file, f"{_ROOT}/coco/{_split}2017")


def get_detection_dataset_dicts(names: str | list[str], filter_empty: bool = True) -> list[dict]:
    """Load and join datasets; `filter_empty` drops images with none but crowd annotations."""
    names = [names] if isinstance(names, str) else names
    dicts = sum((DatasetCatalog.get(name) for name in names), [])
    if filter_empty:
        dicts = [d for d in dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])]
    classes = [getattr(MetadataCatalog.get(name), "thing_classes", None) for name in names]
    if any(c != classes[0] for c in classes):
        raise ValueError(f"Datasets {', '.join(names)} have different thing_classes!")
    return dicts


class DatasetFromList(Dataset):
    """A list whose items are kept pickled: workers share it, and every access is a fresh copy."""

    def __init__(self, lst: list, copy: bool = True):
        self._items = [pickle.dumps(item, -1) for item in lst]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, idx: int) -> Any:
        return pickle.loads(self._items[idx])


def _map(mapper: Callable[[dict], Any], batch: list[dict]) -> list:
    return [mapper(item) for item in batch]


def build_detection_test_loader(cfg: CfgNode, dataset_name: str, mapper=None) -> DataLoader:
    """Load every image once, each a batch of its own, in one piece for each rank."""
    dataset = DatasetFromList(get_detection_dataset_dicts(dataset_name, filter_empty=False))
    return DataLoader(
        dataset,
        sampler=np.array_split(range(len(dataset)), comm.get_world_size())[comm.get_rank()],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=functools.partial(_map, mapper),
    )
