"""Weights in several files, and the index beside them that names them, as transformers has it."""

import json
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import InputError

#: How the names of such indices end.
_INDEX = ".index.json"


def shards_of(path: str) -> list[str]:
    """
    The files that hold the tensors: `path` itself, or those that it names if it is an index.

    Raises:
        InputError: if it is a damaged index, or names files that are not beside it.
    """
    if not is_index(path):
        return [path]
    folder = os.path.dirname(path)
    paths = [os.path.join(folder, name) for name in sorted(set(_weight_map(path).values()))]
    if missing := [os.path.basename(x) for x in paths if not os.path.isfile(x)]:
        raise InputError(
            f"{path}: {len(missing)} of its {len(paths)} files are not beside it, the first "
            f"{missing[0]}; download them, too"
        )
    return paths


def is_index(path: str) -> bool:
    """Whether a file of this name is one."""
    return path.endswith(_INDEX)


def load_shards(index: str, load: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """
    The tensors of all files that an index names, in its order.

    Args:
        load: the state dict in one of them.

    Raises:
        InputError: as :func:`shards_of`, and if a file has not the tensors that it should.
    """
    places = _weight_map(index)
    loaded = {os.path.basename(path): load(path) for path in shards_of(index)}
    for file, tensors in loaded.items():
        expected = {name for name, place in places.items() if place == file}
        if wrong := sorted(expected ^ set(tensors)):
            raise InputError(
                f"{index}: {file} holds other tensors than it says, {wrong[0]} is one of "
                f"{len(wrong)}; download all files again, of one version"
            )
    return {name: loaded[file][name] for name, file in places.items()}


def _weight_map(index: str) -> dict[str, str]:
    """{name of a tensor: name of the file beside the index that holds it}"""
    try:
        with open(index, encoding="utf-8") as file:
            content: Any = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{index}: is no JSON ({error}); download it again") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(map(_is_name, found.values())):
        raise InputError(f"{index}: its weight_map must say which file beside it has which tensor")
    return found


def _is_name(value: Any) -> bool:
    """Whether it names a file of weights in the same folder: an index leads nowhere else."""
    return isinstance(value, str) and os.path.basename(value) == value and not is_index(value)
