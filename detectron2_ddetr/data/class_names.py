"""Which number each class has: by its name, over all data sets of a config."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog, MetadataCatalog
from .coco_dataset import CocoDataset, coco_dataset
from .findings import counted, listed
from .own_datasets import check_own_dataset

logger = logging.getLogger(__name__)

#: How messages name what gives the order without being a data set.
CHECKPOINT, CONFIG = "the checkpoint", "DATASETS.CLASS_NAMES"


@dataclass
class _Source:
    """Where class names come from, and how a message names it."""

    name: str
    classes: list[str]
    dataset: CocoDataset | None = None

    def __str__(self) -> str:
        files = f" ({self.dataset.json_file})" if self.dataset else ""
        return f"{self.name}{files}"


def class_names(
    cfg: CfgNode, *, eval_only: bool = False, order: Sequence[str] | None = None
) -> list[str] | None:
    """
    The names by class number of the data sets that `cfg` names, which are numbered so.

    DATASETS.CLASS_NAMES gives the order, or else the first training set, and every COCO json
    follows it by name, whatever its category ids are. What is not registered, or whose json is not
    there, is passed over.

    Args:
        eval_only: whether nothing is trained: then a training set that is not there, or that has
            other classes, does not matter.
        order: the names that a checkpoint was trained with, to be used instead.

    Returns:
        None if no data set tells its classes.

    Raises:
        InputError: if a data set has boxes of a class that the order lacks; names both. If
            DATASETS.CLASS_NAMES is no list of different names.
    """
    train = [s for name in cfg.DATASETS.TRAIN if (s := _source(name, tolerant=eval_only))]
    test = [s for name in cfg.DATASETS.TEST if (s := _source(name))]
    reference = _Source(CHECKPOINT, list(order)) if order is not None else _given(cfg)
    if reference is None and eval_only:
        reference = _reference_for_evaluation(cfg, train, test)
    if reference is None:
        reference = next((s for s in (*train, *test) if s.classes), None)
    if reference is None:
        unnamed = [f"class {number}" for number in range(cfg.MODEL.DETR.NUM_CLASSES)]
        for source in test:
            if source.dataset is not None:
                source.dataset.number_classes(unnamed)
        return None
    ids = reference.dataset and reference.dataset.data().category_ids
    for source in test if eval_only else [*train, *test]:
        if source.classes:
            _check_against(source, reference)
        if source.dataset is not None:
            source.dataset.number_classes(reference.classes, ids)
    return list(reference.classes)


def _given(cfg: CfgNode) -> _Source | None:
    """DATASETS.CLASS_NAMES; None if it is empty."""
    names = list(cfg.DATASETS.CLASS_NAMES)
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise InputError(f"DATASETS.CLASS_NAMES must be different names, got {names}")
    return _Source(CONFIG, names) if names else None


def _source(name: str, tolerant: bool = False) -> _Source | None:
    """The classes of a data set, none if it does not tell them; None if it is not there."""
    if name not in DatasetCatalog:
        return None
    dataset = coco_dataset(name)
    if dataset is not None:
        if not os.path.isfile(dataset.json_file):
            return None
        try:
            return _Source(f"data set {name!r}", dataset.data().class_names or [], dataset)
        except InputError:
            if tolerant:
                return None
            raise
    if _classes_of(name) is None and not tolerant:
        DatasetCatalog.get(name)  # reading is what sets the class names of some
    return _Source(f"data set {name!r}", _classes_of(name) or [])


def _classes_of(name: str) -> list[str] | None:
    classes = getattr(MetadataCatalog.get(name), "thing_classes", None)
    return None if classes is None else list(classes)


def _reference_for_evaluation(
    cfg: CfgNode, train: list[_Source], test: list[_Source]
) -> _Source | None:
    """The training set, unless the config names one that the test sets have nothing to do with."""
    reference = next((source for source in train if source.classes), None)
    own = next((source for source in test if source.classes), None)
    if reference is None or own is None:
        return reference
    fits = [len(source.classes) == cfg.MODEL.DETR.NUM_CLASSES for source in (reference, own)]
    if fits[0] and (not fits[1] or not any(_lacking(source, reference) for source in test)):
        return reference
    if fits[0]:
        logger.warning(
            "evaluating %s, whose classes (%s) are not those of %s (%s), which DATASETS.TRAIN "
            "names: right only if the weights were trained on classes in the order of the former",
            own, listed(own.classes), reference, listed(reference.classes),
        )  # fmt: skip
    return own


def _lacking(source: _Source, reference: _Source) -> dict[str, int]:
    """Classes that the reference lacks, each with its number of annotations."""
    known = set(reference.classes)
    counts = source.dataset.data().class_counts() if source.dataset else [1] * len(source.classes)
    return {n: c for n, c in zip(source.classes, counts) if n not in known and c}


def _check_against(source: _Source, reference: _Source) -> None:
    """Refuses classes that the reference lacks; of data that are no json, also another order."""
    lacking = _lacking(source, reference)
    if lacking:
        has = f"{reference} has {listed(reference.classes, 10)}"
        boxes = listed([f"{n!r} ({counted(c, 'box', 'boxes')})" for n, c in lacking.items()])
        folded = {name.strip().casefold(): name for name in reference.classes}
        near = [
            f"{folded[close[0]]!r} for {name!r}"
            for name in lacking
            if (close := get_close_matches(name.strip().casefold(), folded, 1, 0.8))
        ]
        meant = f" (perhaps {listed(near)} is meant)" if near else ""
        count = len(reference.classes) + len(lacking)
        other = {
            CHECKPOINT: "take a checkpoint that was trained on them",
            CONFIG: "set DATASETS.CLASS_NAMES '()' to take the classes of the data",
        }.get(
            reference.name,
            f"add them to the categories of the latter and set MODEL.DETR.NUM_CLASSES {count}",
        )
        raise InputError(
            f"{source} has classes that {reference} lacks: {boxes}; {has}{meant}. Classes are "
            f"matched by name: rename or remove these in the former, or {other}"
        )
    unknown = [name for name in source.classes if name not in set(reference.classes)]
    if unknown and source.dataset is not None:
        logger.warning(
            "%s: categories without annotations that %s lacks are left out: %s",
            source, reference, listed(unknown),
        )  # fmt: skip
    if source.dataset is None and source.classes != reference.classes:
        raise InputError(
            f"{source} has classes {listed(source.classes, 10)}, {reference} has "
            f"{listed(reference.classes, 10)}: its dicts number them, so thing_classes must be "
            "the same in the same order"
        )


def check_datasets(
    cfg: CfgNode,
    *,
    eval_only: bool = False,
    order: Sequence[str] | None = None,
    count: bool = False,
) -> list[str] | None:
    """
    Checks every data set that `cfg` names, and that the model has as many classes as they do.

    Args:
        eval_only: whether to leave out DATASETS.TRAIN, which need not exist then.
        order: see :func:`class_names`.
        count: whether MODEL.DETR.NUM_CLASSES becomes the number of classes, instead of having to
            be it.

    Returns:
        What :func:`class_names` does.

    Raises:
        MissingFileError, InputError: for the first data set with a problem.
    """
    uses = [(name, False) for name in cfg.DATASETS.TEST]
    if not eval_only:
        uses = [(name, True) for name in cfg.DATASETS.TRAIN] + uses
    num_classes = cfg.MODEL.DETR.NUM_CLASSES
    for name, is_train in uses:
        if name not in DatasetCatalog:
            raise InputError(
                f"DATASETS: {name!r} is not registered; register it with register_coco_json, or "
                f"use one of {sorted(DatasetCatalog.list())}"
            )
        dataset = coco_dataset(name)
        if dataset is None:
            check_own_dataset(name, num_classes, needs_annotations=is_train)
            continue
        data = dataset.data()
        data.say("train" if is_train else "test")
        if is_train:
            data.check_usable()
    classes = class_names(cfg, eval_only=eval_only, order=order)
    if classes is not None and count:
        cfg.MODEL.DETR.NUM_CLASSES = len(classes)
    elif classes is not None and len(classes) != num_classes:
        named = [f"data set {n!r}" for n, _ in uses if _classes_of(n) == classes] or [CONFIG]
        raise InputError(
            f"MODEL.DETR.NUM_CLASSES is {num_classes} but {named[0]} has "
            f"{counted(len(classes), 'class', 'classes')} ({listed(classes)}); set "
            f"MODEL.DETR.NUM_CLASSES {len(classes)}"
        )
    return classes
