"""Which image files are the same, whatever they are called."""

import hashlib
import os
from collections.abc import Hashable, Mapping, Sequence

from .in_threads import in_threads

_PART, _BLOCK = 4096, 2**20  # bytes


def same_files(paths: Sequence[str], num_bytes: Sequence[int]) -> list[list[int]]:
    """
    Groups of two or more places in `paths` whose files are the same, byte by byte.

    Of files of one length a part from the middle is read, and the whole only of those that agree in
    that: so of a large data set hardly anything is.

    Args:
        num_bytes: the length of each file; one below 0 is passed over.
    """
    places: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        if num_bytes[place] >= 0:
            places.setdefault(os.path.abspath(path), []).append(place)
    keys: dict[str, Hashable] = {path: num_bytes[found[0]] for path, found in places.items()}
    for read in (_middle, _digest):
        files = [path for group in _groups(keys) for path in group]
        digests = in_threads(read, files, "looking for the same image twice")
        keys = {path: (keys[path], digest) for path, digest in zip(files, digests)}
    groups = _groups(keys)
    grouped = {path for group in groups for path in group}
    groups += [[path] for path, found in places.items() if len(found) > 1 and path not in grouped]
    return sorted(sorted(place for path in group for place in places[path]) for group in groups)


def _groups(keys: Mapping[str, Hashable]) -> list[list[str]]:
    """The files that share their key with another."""
    groups: dict[Hashable, list[str]] = {}
    for path, key in keys.items():
        groups.setdefault(key, []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _middle(path: str) -> bytes:
    """There lie the pixels, and not what every file of a format begins or ends with."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _PART) // 2)
        return file.read(_PART)


def _digest(path: str) -> bytes:
    digest = hashlib.blake2b()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()
