"""Images and categories of a COCO json, each field by one rule."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .findings import Findings, counted, listed, shown

#: No image and no box is larger, px.
MAX_SIZE = 1_000_000

Identity = int | str


def identity_of(value: object) -> Identity | None:
    """An id as it is meant: 7 for 7.0; None for what cannot be one."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int or (type(value) is str and value) else None


def read_ids(
    records: Sequence[dict[str, Any]], kind: str, findings: Findings
) -> tuple[list[Identity | None], bool]:
    """
    The ids of images or categories; missing and repeated ones become problems.

    Returns:
        (ids, plain): ids all of one type, str if the file mixes them, and whether that is what
        the file says.
    """
    raw = [record.get("id") for record in records]
    ids = [identity_of(value) for value in raw]
    plain = all(type(value) in (int, str) for value in raw)
    if len({type(identity) for identity in ids if identity is not None}) > 1:
        ids, plain = [i if i is None else str(i) for i in ids], False
    seen = set()
    for place, identity in enumerate(ids):
        who = f"{kind} at place {place}"
        if identity is None:
            text = f"id must be an int or str, got {shown(raw[place])}; number them"
            findings.problem(f"{kind} id", who, text)
        elif identity in seen:
            text = f"id {identity!r} occurs more than once; make the ids unique"
            findings.problem(f"{kind} id twice", who, text)
        seen.add(identity)
    return ids, plain


def find_places(values: Iterable[object], places: Mapping[Identity, int]) -> tuple[list[int], int]:
    """
    Where each id of a column is found.

    Args:
        values: ids that refer to other records.
        places: place of each record by its id.

    Returns:
        (places, texts): -1 where there is none; how many were found only by taking a number and
        its text for the same.
    """
    values = list(values)
    try:
        found = [places.get(value, -1) for value in values]
    except TypeError:  # a list or an object, which cannot be looked up
        found = [places.get(v, -1) if type(v) in (int, float, str) else -1 for v in values]
    if -1 not in found:
        return found, 0
    by_text = {str(identity): place for identity, place in places.items()}
    texts = 0
    for i, place in enumerate(found):
        meant = identity_of(values[i]) if place < 0 else None
        if meant is not None and str(meant) in by_text:
            found[i], texts = by_text[str(meant)], texts + 1
    return found, texts


def read_sizes(
    records: Sequence[dict[str, Any]], names: Sequence[str], required: bool, findings: Findings
) -> np.ndarray:
    """
    (N, 2) int64 width and height of each image, px; 0, 0 where they are wrong or not there.

    Args:
        names: how messages name each image.
        required: whether they must be there.
    """
    sizes = np.zeros((len(records), 2), dtype=np.int64)
    for i, record in enumerate(records):
        said = record.get("width"), record.get("height")
        if said == (None, None) and not required:
            continue
        # 540.0 is what a program writes that keeps all numbers as floats.
        if all(type(s) in (int, float) and 0 < s <= MAX_SIZE and s == int(s) for s in said):
            sizes[i] = said
        else:
            findings.problem(
                "size",
                names[i],
                "width and height must be positive integers, got "
                f"{shown(said[0])} and {shown(said[1])}; write the size of the image in px",
            )
    return sizes


def read_file_names(
    records: Sequence[dict[str, Any]], names: Sequence[str], findings: Findings
) -> list[str | None]:
    """The file names; what is no name becomes a problem, a name in two records a note."""
    files = [record.get("file_name") for record in records]
    for i, file in enumerate(files):
        if not isinstance(file, str) or not file:
            findings.problem("file_name", names[i], "file_name must be a string; add it")
            files[i] = None
    counts = Counter(os.path.normpath(file) for file in files if file)
    twice = [file for file, count in counts.items() if count > 1]
    if twice:
        same = [n for n, f in zip(names, files) if f and os.path.normpath(f) == twice[0]]
        findings.note(
            f"{counted(len(twice), 'file')} named by more than one image record "
            f"({listed(same, 3)}), as in exports that were joined; each record counts as an image "
            "of its own: give all boxes of a file to one record"
        )
    return files


def read_category_names(
    records: Sequence[dict[str, Any]], ids: Sequence[Identity | None], findings: Findings
) -> list[str]:
    """The names of the categories; missing and repeated ones become problems."""
    names: list[str] = []
    first: dict[str, object] = {}
    for record, identity in zip(records, ids):
        name = record.get("name")
        if not isinstance(name, str) or not name.strip():
            who = f"category {shown(record.get('id'))}"
            findings.problem("category name", who, "it has no name; add one (a string)")
        elif any("\ud800" <= character <= "\udfff" for character in name):
            who = f"category {shown(identity)}"
            text = f"its name {shown(name)} has half of a character, which cannot be written"
            findings.problem("category name cut", who, f"{text}; correct it")
        elif name in first:
            findings.problem(
                "category name twice",
                f"categories {first[name]!r} and {identity!r}",
                f"both have the name {shown(name)}, and classes are known by their names; give "
                "one another name, or give its boxes to the other and remove it",
            )
        else:
            first[name] = identity
        names.append(name if isinstance(name, str) else "")
    return names


def order_of_ids(ids: Sequence[Identity]) -> list[int]:
    """The places of ids in their order, texts of numbers by their value."""
    texts = all(isinstance(identity, str) and identity.isdecimal() for identity in ids)
    return sorted(range(len(ids)), key=lambda i: int(ids[i]) if texts else ids[i])
