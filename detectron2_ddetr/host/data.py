"""Datasets by name, COCO json files and data loaders."""

import contextlib
import io
import itertools
import logging
import os
import pickle
import types
from collections import UserDict
from typing import Any, Callable, Iterator

import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from . import comm
from .config import CfgNode, configurable
from .env import seed_all_rng
from .file_io import PathManager
from .structures import BoxMode

logger = logging.getLogger("detectron2.data")

_COCO_NAMES = """
person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;stop sign;
parking meter;bench;bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;backpack;umbrella;
handbag;tie;suitcase;frisbee;skis;snowboard;sports ball;kite;baseball bat;baseball glove;
skateboard;surfboard;tennis racket;bottle;wine glass;cup;fork;knife;spoon;bowl;banana;apple;
sandwich;orange;broccoli;carrot;hot dog;pizza;donut;cake;chair;couch;potted plant;bed;
dining table;toilet;tv;laptop;mouse;remote;keyboard;cell phone;microwave;oven;toaster;sink;
refrigerator;book;clock;vase;scissors;teddy bear;hair drier;toothbrush
"""
_COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


class _Catalog(UserDict):
    def list(self) -> list[str]:
        return list(self)

    def remove(self, name: str) -> None:
        self.pop(name)


class _DatasetCatalog(_Catalog):
    """Functions that return the list of dicts of a dataset, by name."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        assert callable(func), "You must register a function with `DatasetCatalog.register`!"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Call the function registered under `name`."""
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered! Available: {', '.join(self)}")
        return self[name]()


class Metadata(types.SimpleNamespace):
    """Attributes of a dataset that can be set, but not changed."""

    def __setattr__(self, key: str, val: Any) -> None:
        old = self.__dict__.setdefault(key, val)
        assert old == val, f"'{key}' of '{self.name}' cannot be set to another value: {old} {val}"

    def set(self, **kwargs: Any) -> "Metadata":
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class _MetadataCatalog(_Catalog):
    """The metadata of each dataset, by name."""

    def get(self, name: str) -> Metadata:
        """Return the metadata of `name`, empty if there is none yet."""
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict]:
    """
    Load instances in COCO's format, images sorted by id.

    With a `dataset_name`, category ids become contiguous and the metadata gets
    `thing_classes` and `thing_dataset_id_to_contiguous_id`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(PathManager.get_local_path(json_file))
    id_map = None
    if dataset_name is not None:
        categories = sorted(coco.loadCats(coco.getCatIds()), key=lambda c: c["id"])
        id_map = {c["id"]: i for i, c in enumerate(categories)}
        MetadataCatalog.get(dataset_name).set(
            thing_classes=[c["name"] for c in categories], thing_dataset_id_to_contiguous_id=id_map
        )
    logger.info(f"Loaded {len(coco.imgs)} images in COCO format from {json_file}")
    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    dataset_dicts = []
    for image_id in sorted(coco.imgs):
        image = coco.imgs[image_id]
        record = {"file_name": os.path.join(image_root, image["file_name"])}
        record |= {"height": image["height"], "width": image["width"], "image_id": image_id}
        objs = (_load_annotation(anno, keys, id_map) for anno in coco.imgToAnns[image_id])
        record["annotations"] = [obj for obj in objs if obj is not None]
        dataset_dicts.append(record)
    return dataset_dicts


def _load_annotation(anno: dict, keys: list[str], id_map: dict[int, int] | None) -> dict | None:
    """Return one annotation, or None where its polygons are invalid."""
    if anno.get("ignore", 0) != 0 or anno.get("bbox") == []:
        raise ValueError(f"annotation {anno['id']} has 'ignore' or an empty 'bbox'")
    obj = {key: anno[key] for key in keys if key in anno}
    segm = anno.get("segmentation")
    if isinstance(segm, dict) and isinstance(segm["counts"], list):
        segm = mask_util.frPyObjects(segm, *segm["size"])
    elif segm and not isinstance(segm, dict):
        segm = [poly for poly in segm if len(poly) % 2 == 0 and len(poly) >= 6]
        if not segm:
            return None
    if segm:
        obj["segmentation"] = segm
    if obj.get("keypoints"):  # from pixel indices to coordinates
        obj["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(obj["keypoints"])]
    obj["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map:
        if obj["category_id"] not in id_map:
            raise KeyError(f"category_id {obj['category_id']} is not in 'categories' of the json")
        obj["category_id"] = id_map[obj["category_id"]]
    return obj


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a dataset in COCO's format; its files are read when it is asked for."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def _register_builtin_coco() -> None:
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    ids = [i for i in range(1, 91) if i not in _COCO_UNUSED_IDS]
    metadata = {
        "thing_dataset_id_to_contiguous_id": {k: i for i, k in enumerate(ids)},
        "thing_classes": _COCO_NAMES.replace("\n", "").split(";"),
    }
    for split in ("train", "val"):
        json_file = os.path.join(root, f"coco/annotations/instances_{split}2017.json")
        images = os.path.join(root, f"coco/{split}2017")
        register_coco_instances(f"coco_2017_{split}", metadata, json_file, images)


_register_builtin_coco()


def get_detection_dataset_dicts(
    names: str | list[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> list[dict]:
    """Load and join datasets; `filter_empty` drops images with none but crowd annotations."""
    if min_keypoints > 0 or proposal_files is not None:
        raise NotImplementedError("keypoints and proposals need detectron2")
    names = [names] if isinstance(names, str) else names
    dicts = list(itertools.chain.from_iterable(DatasetCatalog.get(name) for name in names))
    has_instances = bool(dicts) and "annotations" in dicts[0]
    if filter_empty and has_instances:
        before = len(dicts)
        dicts = [d for d in dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])]
        logger.info(
            f"Removed {before - len(dicts)} images with no usable annotations. "
            f"{len(dicts)} images left."
        )
    classes = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    if check_consistency and has_instances and any(c != classes[0] for c in classes):
        raise ValueError(f"Datasets {', '.join(names)} have different thing_classes!")
    assert len(dicts), f"No valid data found in {','.join(names)}."
    return dicts


class TrainingSampler(Sampler):
    """An endless stream of indices, shuffled anew in each epoch and dealt out to the ranks."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int. Got {size}.")
        self._size, self._shuffle = size, shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._indices(), comm.get_rank(), None, comm.get_world_size())

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler):
    """Every index once, split into contiguous parts, one for each rank."""

    def __init__(self, size: int):
        share, extra = divmod(size, comm.get_world_size())
        begin = share * comm.get_rank() + min(comm.get_rank(), extra)
        self._local_indices = range(begin, begin + share + (comm.get_rank() < extra))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)


class DatasetFromList(Dataset):
    """A list whose items are kept pickled: workers share it, and every access is a fresh copy."""

    def __init__(self, lst: list, copy: bool = True):
        self._items = [pickle.dumps(item, -1) for item in lst]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, idx: int) -> Any:
        return pickle.loads(self._items[idx])


class _MappedDataset(Dataset):
    def __init__(self, dataset: list | Dataset, mapper: Callable[[dict], Any]):
        if isinstance(dataset, IterableDataset) or mapper is None:
            raise NotImplementedError(
                "an IterableDataset, or a default mapper, needs detectron2; pass mapper="
            )
        self._dataset = DatasetFromList(dataset) if isinstance(dataset, list) else dataset
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        item = self._mapper(self._dataset[int(idx)])
        if item is None:
            raise NotImplementedError(f"the mapper skipped item {idx}; this needs detectron2")
        return item


def _as_list(batch: list) -> list:
    return batch


def _seed_worker(worker_id: int) -> None:
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _train_loader_from_config(cfg: CfgNode, mapper=None, *, dataset=None, sampler=None) -> dict:
    if dataset is None:
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filter_empty)
    if sampler is None:
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            raise NotImplementedError(f"{cfg.DATALOADER.SAMPLER_TRAIN} needs detectron2")
        sampler = TrainingSampler(len(dataset), seed=cfg.SEED)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | Dataset,
    *,
    mapper: Callable[[dict], Any],
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs,
) -> DataLoader:
    """Build a loader of batches as lists; also called as ``(cfg, mapper=)``."""
    if aspect_ratio_grouping:
        raise NotImplementedError(
            "aspect ratio grouping needs detectron2; set DATALOADER.ASPECT_RATIO_GROUPING False"
        )
    dataset = _MappedDataset(dataset, mapper)
    sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
    batch_size, rest = divmod(total_batch_size, comm.get_world_size())
    assert batch_size > 0 and rest == 0, f"{total_batch_size=} over {comm.get_world_size()} ranks"
    seed = kwargs.pop("seed", None)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=kwargs.pop("drop_last", True),
        num_workers=num_workers,
        collate_fn=collate_fn or _as_list,
        worker_init_fn=_seed_worker,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    )


def _test_loader_from_config(cfg: CfgNode, dataset_name: str | list[str], mapper=None) -> dict:
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return {"dataset": dataset, "mapper": mapper, "num_workers": cfg.DATALOADER.NUM_WORKERS}


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | Dataset,
    *,
    mapper: Callable[[dict], Any],
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """Build a loader of every image once; also called as ``(cfg, dataset_name, mapper=)``."""
    dataset = _MappedDataset(dataset, mapper)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or _as_list,
    )
