"""Which data sets a run uses: those that the command line gives, and those a config names."""

import argparse
import os
import re
from collections.abc import Sequence

from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog, MetadataCatalog
from .coco_dataset import files_of, register_coco_json
from .folders import as_coco, layout_of


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
        given: (name, json, folder of images) of each; or (name, folder in one of the layouts, "")
            with a name that begins with "train" or "val", which a json is written for into
            OUTPUT_DIR if it has none.
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
    paths = {name: (path, images) for name, path, images in cfg.DATASETS.COCO_JSON}
    paths |= {name: (path, images) for name, path, images in given}
    for name in dict.fromkeys([*cfg.DATASETS.TEST, *(() if eval_only else cfg.DATASETS.TRAIN)]):
        if name in paths and name not in names:
            notes += _register_recorded(name, *_json_of(name, *paths[name], cfg.OUTPUT_DIR))
    for name in names:
        register_coco_json(name, *_json_of(name, *paths[name], cfg.OUTPUT_DIR))
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if name not in paths or not _is_folder(*paths[name]):
            paths[name] = files_of(name) or paths.get(name)
    cfg.DATASETS.COCO_JSON = [
        [name, *(path and os.path.abspath(path) for path in paths[name])]
        for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        if paths[name]
    ]
    if not eval_only:
        notes.append(f"training on {', '.join(cfg.DATASETS.TRAIN)}")
    return [*notes, f"evaluating on {', '.join(cfg.DATASETS.TEST) or 'nothing'}"]


def _is_folder(path: str, images: str) -> bool:
    """Whether it has its images inside, and a layout to be recognised."""
    return not images and not path.endswith(".json")


def _json_of(name: str, path: str, images: str, output_dir: str) -> tuple[str, str]:
    """(json, folder of images), which a folder that is given has, or gets."""
    if not _is_folder(path, images):
        return path, images
    split, _, number = name.partition("_")
    return as_coco(path, split, os.path.join(output_dir, f"datasets{number}"))


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


_CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|SEED|VERSION")


class _Add(argparse.Action):
    """
    Appends a data set: NAME JSON IMAGES of `--dataset`, JSON IMAGES or FOLDER of the others.

    Of the latter nothing tells where they end, so they get the KEY VALUE pairs after them too,
    which go to `pairs`.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        count = 3
        if self.nargs == "+":
            count = 2 if values[0].endswith(".json") else 1
        words, rest = values[:count], values[count:]
        keys = [word for word in words if _CONFIG_KEY.fullmatch(word)]
        if keys or len(words) < count:
            after = f": {keys[0]} is a config key" if keys else ""
            parser.error(
                f"{option_string} {' '.join(words)}{after}; it takes {self.metavar_in_words()}, "
                "and one is missing"
            )
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), words])
        namespace.pairs = [*namespace.pairs, *rest]

    def metavar_in_words(self) -> str:
        return "NAME JSON IMAGES" if self.nargs == 3 else "a json and its folder of images"


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--train`, `--val` and `--dataset`, of which each may be repeated."""
    parser.set_defaults(pairs=[])
    for option, what in (("--train", "train"), ("--val", "evaluate")):
        parser.add_argument(
            option,
            nargs="+",
            action=_Add,
            default=[],
            metavar="PATH",
            help=f"{what} on a COCO json and its folder of images, or on a folder with the layout "
            "of COCO, YOLO (or its data.yaml) or Pascal VOC",
        )
    parser.add_argument(
        "--dataset",
        nargs=3,
        action=_Add,
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="register a COCO json and its folder of images under a name, for DATASETS.TRAIN and "
        "DATASETS.TEST",
    )


def name_given_datasets(args: argparse.Namespace, *, eval_only: bool) -> None:
    """
    Writes `--train` and `--val` as `--dataset` and KEY VALUE pairs, which mean the same.

    Where a folder that is trained on has a val too, that is evaluated on. Otherwise, without
    `--val`, a training that is given its data is evaluated on nothing.

    Raises:
        InputError: if a key says something else, or nothing is trained.
    """
    args.opts, args.pairs = [*args.pairs, *args.opts], []
    if args.train and eval_only:
        raise InputError("--train is given, but nothing is trained: give --val")
    chosen = set(args.opts[::2])
    if args.train and not args.val and "DATASETS.TEST" not in chosen:
        folders = [words for words in args.train if len(words) == 1]
        args.val = [words for words in folders if "val" in layout_of(words[0]).splits]
        if not args.val:
            args.opts = [*args.opts, "DATASETS.TEST", "()"]
    for option, key in (("train", "DATASETS.TRAIN"), ("val", "DATASETS.TEST")):
        given = getattr(args, option)
        if given and key in chosen:
            raise InputError(f"--{option} and {key} say what to use: give one of them")
        numbers = range(2, len(given) + 1)
        names = [option, *(f"{option}_{number}" for number in numbers)][: len(given)]
        args.dataset = [*args.dataset, *([n, *words, ""][:3] for n, words in zip(names, given))]
        if given:
            args.opts = [*args.opts, key, str(tuple(names))]
    args.train, args.val = [], []
