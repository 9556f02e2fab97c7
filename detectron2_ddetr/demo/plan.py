"""What `ddetr predict` is to do, looked at before a model is built."""

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

from ..data.given_images import image_paths
from ..engine.run_folder import require_folder
from ..errors import InputError
from .frames import is_video

#: Where pictures and videos go if nothing is said.
FOLDER = "predictions"


class Plan(NamedTuple):
    """What is read, and where pictures go."""

    pictures: list[str]
    #: Paths, and the number of a webcam.
    videos: list[str | int]
    #: By what a picture or video is called, the name of its file in the folder without an ending.
    names: dict[str, str]
    #: Of pictures and videos; None for none.
    folder: str | None


def plan_of(args: argparse.Namespace) -> Plan:
    """
    Args:
        args: of :func:`.command.add_predict_arguments`, and `inputs`, a list.

    Raises:
        MissingFileError, InputError: for inputs that are not there, and outputs that cannot be.
    """
    threshold = args.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--score-threshold is {threshold:g}, but scores are from 0 to 1")
    if args.ids_of and not args.json:
        raise InputError("--ids-of says what --json calls images and classes: give --json FILE too")
    if not args.inputs and args.webcam is None:
        raise InputError("nothing to predict on: name images, folders, videos, or give --webcam 0")
    paths = list(dict.fromkeys(path for given in args.inputs for path in image_paths(given)))
    pictures = [path for path in paths if not is_video(path)]
    videos: list[str | int] = [path for path in paths if is_video(path)]
    if args.webcam is not None:
        videos.append(args.webcam)
    called = [*pictures, *(f"webcam {v}" if isinstance(v, int) else v for v in videos)]
    folder = args.output or (None if args.json else FOLDER)
    if args.json:
        require_folder(os.path.dirname(os.path.abspath(args.json)))
    if folder:
        _check_folder(folder, paths)
    return Plan(pictures, videos, _file_names(called), folder)


def _check_folder(folder: str, inputs: Sequence[str]) -> None:
    """Makes it, unless an input lies in it."""
    require_folder(folder, make=True)
    real = os.path.realpath(folder)
    for path in inputs:
        if os.path.dirname(os.path.realpath(path)) == real:
            raise InputError(
                f"--output {folder} has inputs in it ({os.path.basename(path)}), which pictures "
                "could overwrite: give another folder"
            )


def _file_names(called: Sequence[str]) -> dict[str, str]:
    """Their last parts without the ending; with a number where that was there before."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name in called:
        stem = wanted = os.path.splitext(os.path.basename(name))[0]
        number = 1
        while wanted in taken:
            number += 1
            wanted = f"{stem}_{number}"
        taken.add(wanted)
        names[name] = wanted
    return names
