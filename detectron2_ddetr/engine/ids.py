"""What images and classes are called in a json of results."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..data.findings import listed
from ..engine.ground_truth import truth_of_file
from ..errors import InputError


class Ids(NamedTuple):
    """Category ids by class number; image ids by path, where others are called by their path."""

    of_class: Mapping[int, int | str]
    of_path: Mapping[str, int | str]

    def of_image(self, name: str) -> int | str:
        return self.of_path.get(name, name)


def ids_in_json(truth: str, paths: Sequence[str], class_names: Sequence[str] | None) -> Ids:
    """
    Those of a COCO json, so that detections can be compared with it.

    Args:
        truth: the json.
        paths: of the images; they end in what the json has as their file_name.
        class_names: of the model, by class number. Classes that the json lacks have no id.

    Raises:
        MissingFileError, InputError: for a file that is no such json, or lacks an image or all
            classes; name it.
    """
    coco = truth_of_file(truth).coco
    if class_names is None:
        raise InputError(
            f"{truth}: its categories are found by name, and the model does not know the names of "
            "its classes; add DATASETS.CLASS_NAMES with them"
        )
    by_name = {record["name"]: identity for identity, record in coco.cats.items()}
    of_class = {n: by_name[name] for n, name in enumerate(class_names) if name in by_name}
    if not of_class:
        raise InputError(
            f"{truth}: none of its categories ({listed(list(by_name), 10)}) is a class of the "
            f"model ({listed(class_names, 10)}); correct the names in one of them"
        )
    by_file = {os.path.normpath(record["file_name"]): i for i, record in coco.imgs.items()}
    of_path: dict[str, int | str] = {}
    path_of: dict[int | str, str] = {}
    for path in paths:
        identity = _identity(path, by_file)
        if identity is None:
            raise InputError(
                f"{path}: {truth} has no image whose file_name this path ends in (it has "
                f"{listed(list(by_file), 3)}); leave the image out, or correct the json"
            )
        if path_of.setdefault(identity, path) != path:
            raise InputError(
                f"{path} and {path_of[identity]} are both image {identity!r} of {truth}; leave one "
                "of them out"
            )
        of_path[path] = identity
    return Ids(of_class, of_path)


def _identity(path: str, by_file: Mapping[str, int | str]) -> int | str | None:
    """The longest end of the path that is a file_name decides."""
    parts = os.path.abspath(path).split(os.sep)
    ends = (os.sep.join(parts[start:]) for start in range(len(parts)))
    return next((by_file[end] for end in ends if end in by_file), None)
