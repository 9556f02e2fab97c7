"""The names of the classes, which a checkpoint carries so that none is taken for another."""

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from .entries import CLASS_NAMES
from .files import load_checkpoint_file


def read_class_names(path: str) -> list[str] | None:
    """
    The class names in a checkpoint, by class number; None in one that has none.

    Raises:
        InputError: as :func:`load_checkpoint_file` does.
    """
    return class_names_of(load_checkpoint_file(path), path)


def class_names_of(checkpoint: dict[str, Any], path: str) -> list[str] | None:
    """
    :func:`read_class_names` of a file that is loaded.

    Raises:
        InputError: if they are not a list of names.
    """
    names = checkpoint.get(CLASS_NAMES)
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {CLASS_NAMES} must be a list of names, this is {names!r}")
    return list(names)


def difference_of_names(found: Sequence[str], expected: Sequence[str]) -> str:
    """How the names of a checkpoint differ from those of the data, in words; "" if they do not."""
    found, expected = list(found), list(expected)
    if found == expected:
        return ""
    same = sorted(found) == sorted(expected)
    what = "the same classes in another order" if same else "other classes"
    first = next(
        (i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    return (
        f"{what}: its classes are {_listed(found)}, those of the data set {_listed(expected)}; "
        f"they differ from class {first} on"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"[{shown}, ... {len(names)} in all]" if len(names) > 20 else f"[{shown}]"
