"""Which data sets a run uses: those that the command line gives, and those that a config names."""

import argparse
import os
import re
from collections.abc import Sequence

from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog, MetadataCatalog
from .coco_dataset import files_of, register_coco_json


def use_given_datasets(
    cfg: CfgNode,
    given: Sequence[tuple[str, str, str]],
    opts: Sequence[str],
    *,
    eval_only: bool = False,
) -> list[str]:
    """
    Registers the data sets that are given and makes `cfg` name them.

    What is given alone is used: one data set without DATASETS.TRAIN and DATASETS.TEST is both.
    Where the files of all data sets lie is written into DATASETS.COCO_JSON, so that the config of
    a run is enough to find them again.

    Args:
        cfg: not frozen; changed.
        given: (name, json, folder of images) of each.
        opts: the KEY VALUE pairs, which say whether DATASETS.TRAIN and TEST were chosen.
        eval_only: whether nothing is trained, so that DATASETS.TRAIN does not matter.

    Returns:
        Lines to log.

    Raises:
        InputError: for one that is given and not used, or given twice, and where it is not clear
            what to use.
    """
    names = [name for name, _, _ in given]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"--dataset {min(twice)} is given twice; give each a name of its own")
    notes = _choose(cfg, names, {"DATASETS.TRAIN", "DATASETS.TEST"} & set(opts[::2]), eval_only)
    paths = {name: (json_file, images) for name, json_file, images in cfg.DATASETS.COCO_JSON}
    for name in dict.fromkeys([*cfg.DATASETS.TEST, *(() if eval_only else cfg.DATASETS.TRAIN)]):
        if name in paths and name not in names:
            notes += _register_recorded(name, *paths[name])
    for name, json_file, images in given:
        register_coco_json(name, json_file, images)
        paths[name] = (json_file, images)
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        paths[name] = files_of(name) or paths.get(name)
    cfg.DATASETS.COCO_JSON = [
        [name, os.path.abspath(paths[name][0]), os.path.abspath(paths[name][1])]
        for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        if paths[name]
    ]
    if not eval_only:
        notes.append(f"training on {', '.join(cfg.DATASETS.TRAIN)}")
    return [*notes, f"evaluating on {', '.join(cfg.DATASETS.TEST) or 'nothing'}"]


def _choose(cfg: CfgNode, names: list[str], chosen: set[str], eval_only: bool) -> list[str]:
    """Makes DATASETS.TRAIN and TEST name what is given; returns lines to log."""
    node = cfg.DATASETS
    unused = [name for name in names if name not in (*node.TRAIN, *node.TEST)]
    if unused and not chosen and len(names) == 1:
        node.TEST = tuple(names)
        if eval_only:
            return []
        node.TRAIN = tuple(names)
        return [
            f"--dataset {names[0]} is the only data set given: its AP will be that on its own "
            "training images. Give another one to evaluate on, with DATASETS.TEST"
        ]
    if unused:
        raise InputError(
            f"--dataset {', '.join(unused)}: given, but neither DATASETS.TRAIN {node.TRAIN} nor "
            f"DATASETS.TEST {node.TEST} names it; add, for instance, DATASETS.TRAIN {names[0]} "
            f"DATASETS.TEST {names[-1]}"
        )
    trained = set(names) & set(node.TRAIN)
    if trained and not eval_only and node.TEST and not set(names) & set(node.TEST):
        if "DATASETS.TEST" not in chosen:
            raise InputError(
                f"training on {', '.join(sorted(trained))} would be evaluated on {node.TEST}, "
                f"which the config file names: add DATASETS.TEST {names[-1]}, or "
                "DATASETS.TEST '()' to evaluate on nothing"
            )
    return []


def _register_recorded(name: str, json_file: str, images: str) -> list[str]:
    """Registers what the config of a run says; returns lines to log."""
    registered = (files_of(name) or (None,))[0]
    if registered is not None:
        if os.path.abspath(registered) == json_file:
            return []
        if not os.path.exists(json_file):
            return [f"data set {name}: the config's {json_file} is not here, {registered} is used"]
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    register_coco_json(name, json_file, images)
    return []


class _AddDataset(argparse.Action):
    """Appends (name, json, images); a config key among them shows that one was left out."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", value):
                parser.error(
                    f"--dataset {' '.join(values)}: {value} is a config key, so NAME, JSON or "
                    "IMAGES is missing before it"
                )
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*given, values])


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--dataset`: the arguments of :func:`register_coco_json`, once for each data set."""
    parser.add_argument(
        "--dataset",
        nargs=3,
        action=_AddDataset,
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="register a COCO json and its folder of images under a name; may be repeated",
    )
