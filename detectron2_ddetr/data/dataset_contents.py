"""What data sets hold, looked through and reported before anything is built."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from ..config import add_deformable_detr_config
from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog, MetadataCatalog, comm, get_cfg
from .class_table import category_ids, class_table
from .coco_dataset import coco_dataset
from .coco_json import CocoData, read_coco_json
from .dataset_report import Split, describe
from .findings import counted
from .image_files import read_headers
from .same_files import same_files
from .small_boxes import Resizing, warning_of_small

logger = logging.getLogger(__name__)

_MAX_PAIRS = 10


def check_contents(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """
    Checks the headers of all images that `cfg` would read and logs a report of each data set, with
    warnings of images that are trained on and evaluated on too, of images with more boxes than
    the model can find, and of boxes that are few pixels. One process of each machine does it, for
    all of its machine.

    Args:
        eval_only: whether to leave out DATASETS.TRAIN.

    Raises:
        InputError: lists the faulty images of every data set.
    """
    if comm.get_local_rank() != 0:
        return
    train = dict.fromkeys(() if eval_only else cfg.DATASETS.TRAIN)
    test = dict.fromkeys(cfg.DATASETS.TEST)
    splits = {name: _split_of(cfg, name, name in test) for name in {**train, **test}}
    first = next(iter(splits.values()), None)
    if first is not None and first.class_names:
        columns = {"train": [splits[name] for name in train], "test": [splits[n] for n in test]}
        table = _class_table(first.class_names, category_ids(first.name) or (), columns)
        logger.info(f"classes of {first.name}, and how many boxes each has:\n{table}")
    found = _look_through(list(splits.values()), list(product(train, test)))
    for warning in found.warnings:
        logger.warning(warning)
    for report in found.reports:
        logger.info(f"data set {report}")
    if found.faults:
        raise InputError("\n".join(found.faults))


def _split_of(cfg: CfgNode, name: str, is_test: bool) -> Split:
    """A registered data set; where it is only trained on, without what training leaves out."""
    dataset = coco_dataset(name)
    split = Split(
        name,
        DatasetCatalog.get(name),
        list(getattr(MetadataCatalog.get(name), "thing_classes", None) or ()),
        _limits(cfg, is_test=is_test),
        Resizing.of(cfg, is_test=is_test),
        without_area=0 if dataset is None else dataset.data().num_without_area,
    )
    if is_test or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return split
    # What detectron2's filter keeps: it does not look at areas.
    kept = [d for d in split.dicts if _has_object(d)]
    left_out = len(split.dicts) - len(kept)
    return replace(split, dicts=kept, left_out=left_out)


def _has_object(dataset_dict: dict[str, Any]) -> bool:
    return any(not a.get("iscrowd", 0) for a in dataset_dict.get("annotations") or ())


def _limits(cfg: CfgNode, *, is_test: bool) -> dict[str, int]:
    """How many boxes of an image a model can find, by the keys that say so."""
    limits = {"MODEL.DETR.NUM_QUERIES": cfg.MODEL.DETR.NUM_QUERIES}
    if is_test:
        limits["TEST.DETECTIONS_PER_IMAGE"] = cfg.TEST.DETECTIONS_PER_IMAGE
    return limits


def _class_table(
    classes: Sequence[str], ids: Sequence[object], columns: Mapping[str, Sequence[Split]]
) -> str:
    """The classes, with the boxes of the splits of each column by the names of their classes."""
    counts = {}
    for heading, splits in columns.items():
        found = dict.fromkeys(classes, 0)
        for split in splits:
            for number, count in enumerate(split.class_counts()):
                name = (split.class_names or classes)[number]
                found[name] += count
        counts[heading] = [found[name] for name in classes]
    return class_table(classes, ids, {k: v for k, v in counts.items() if columns[k]})


class _Found(NamedTuple):
    """
    warnings: a text each.
    reports: of each data set.
    faults: what is wrong with the images of a data set, for those where something is.
    """

    warnings: list[str]
    reports: list[str]
    faults: list[str]


def _look_through(splits: Sequence[Split], crossed: Sequence[tuple[str, str]]) -> _Found:
    """
    Reads the headers of all images, and finds those that are the same.

    Args:
        crossed: names of splits that should share no image, (trained on, evaluated on).
    """
    files = [read_headers(split.dicts, split.name) for split in splits]
    owners = [(split, place) for split in splits for place in range(len(split.dicts))]
    groups = [
        [owners[i] for i in group]
        for group in same_files(
            [str(split.dicts[place].get("file_name")) for split, place in owners],
            [int(number) for found in files for number in found.num_bytes],
        )
    ]
    warnings = [text for split in splits if (text := _of_crowded(split))]
    reports = []
    for split, found in zip(splits, files):
        boxes = split.columns[split.usable]
        if small := warning_of_small(split.name, boxes, found.sizes, split.resizing):
            warnings.append(small)
        same = [[place for owner, place in group if owner is split] for group in groups]
        reports.append(describe(split, found, [group for group in same if len(group) > 1]))
    for train, test in crossed:
        pairs = []
        for group in groups if train != test else ():
            trained = [_path(*member) for member in group if member[0].name == train]
            tested = [_path(*member) for member in group if member[0].name == test]
            pairs += [f"{trained[0]} = {path}" for path in tested if trained]
        if pairs:
            warnings.append(_of_shared(train, test, pairs))
    return _Found(warnings, reports, [text for found in files if (text := found.complaint())])


def _path(split: Split, place: int) -> str:
    """An image file with the folder that it is in."""
    return os.path.join(*os.path.abspath(split.dicts[place]["file_name"]).split(os.sep)[-2:])


def _of_shared(train: str, test: str, pairs: Sequence[str]) -> str:
    """That images are in both data sets, and which."""
    lines = [
        f"{counted(len(pairs), 'image')} of {test} also in {train}, byte by byte; how well a model "
        "does on what it was trained on says little about anything else: remove them from one",
        *(f"  {pair}" for pair in pairs[:_MAX_PAIRS]),
    ]
    if len(pairs) > _MAX_PAIRS:
        lines.append(f"  ... and {len(pairs) - _MAX_PAIRS} more")
    return "\n".join(lines)


def _of_crowded(split: Split) -> str:
    """One line if images have more boxes than the config lets a model find, or else ""."""
    said = [
        f"{len(places)} of {len(split.dicts)} images have more than {key} {split.limits[key]}"
        for key, places in split.crowded().items()
        if places
    ]
    if not said:
        return ""
    return (
        f"data set {split.name!r}: {' and '.join(said)} boxes (the most: {split.per_image.max()}); "
        "those beyond it cannot be found: set it higher"
    )


def check_coco_json(json_file: str, image_root: str, *, needs_annotations: bool = True) -> str:
    """
    Checks an annotation file and its images, of which the headers are read, and logs what looks
    wrong.

    Args:
        json_file, image_root: see :func:`read_coco_json`.
        needs_annotations: whether at least one annotation must be usable, as training wants.

    Returns:
        A report for a person; its last line says whether anything was logged.

    Raises:
        MissingFileError, InputError: see :func:`check_coco_jsons`.
    """
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    sets = {json_file: (json_file, image_root)}
    return check_coco_jsons(sets, cfg, needs_annotations=needs_annotations)


def check_coco_jsons(
    jsons: Mapping[str, tuple[str, str]], cfg: CfgNode, *, needs_annotations: bool = False
) -> str:
    """
    Checks the splits of a data set together: :func:`check_coco_json` for several.

    Args:
        jsons: name, for messages -> (json, folder of images). The first is what is trained on.
        cfg: says how many boxes of an image a model can find, and how large images become.

    Raises:
        MissingFileError: if a file or a folder does not exist.
        InputError: lists the problems of every file, or the faulty images of every split.
    """
    read: dict[str, CocoData] = {}
    problems = []
    for name, (json_file, image_root) in jsons.items():
        try:
            read[name] = read_coco_json(json_file, image_root, needs_labels=needs_annotations)
            if needs_annotations:
                read[name].check_usable()
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    splits = [
        Split(
            name,
            data.dataset_dicts(jsons[name][1], None),
            data.class_names or [],
            _limits(cfg, is_test=True),
            Resizing.of(cfg, is_test=True),
            data.num_without_area,
        )
        for name, data in read.items()
    ]
    notes = sum(len(data.notes) for data in read.values())
    for data in read.values():
        data.say("all")
    first, *others = read
    found = _look_through(splits, [(first, name) for name in others])
    for warning in found.warnings:
        logger.warning(warning)
    if found.faults:
        raise InputError("\n".join(found.faults))
    number = notes + len(found.warnings)
    said = "can be used, but see the {} above".format(counted(number, "warning"))
    verdict = said if number else "no problem found"
    return "\n".join([*_table_of(read, splits), *found.reports, verdict])


def _table_of(read: Mapping[str, CocoData], splits: Sequence[Split]) -> list[str]:
    """The classes of the files together, and how many boxes each has in each."""
    ids: dict[str, object] = {}
    for data in read.values():
        ids = dict(zip(data.class_names or (), data.category_ids or ())) | ids
    columns = {split.name if len(splits) > 1 else "boxes": [split] for split in splits}
    return [_class_table(list(ids), list(ids.values()), columns)] if ids else []
