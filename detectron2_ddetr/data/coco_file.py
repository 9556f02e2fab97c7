"""From the bytes of a COCO json to its lists of records."""

import gc
import json
import os
import sys
from collections import Counter
from typing import Any

from ..errors import InputError, MissingFileError
from .findings import counted, shown

LISTS = ("images", "annotations", "categories")


def parse_coco_file(json_file: str, *, needs_labels: bool = True) -> tuple[dict[str, Any], bool]:
    """
    Parses a COCO json, of which the lists of records are there.

    Args:
        json_file: in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        needs_labels: False if "annotations" and "categories" may be missing or empty, as in a
            file of images to predict on.

    Returns:
        (content, plain): the content, with None for a list that may be missing and is, and whether
        the file is plain UTF-8, as other readers take it to be.

    Raises:
        MissingFileError: if there is no such file.
        InputError: if it is no json, or not COCO's.
    """
    content, plain = _parse(json_file)
    if not isinstance(content, dict):
        raise InputError(
            f"{json_file}: COCO json must be an object with images, annotations and categories, "
            f"got a {type(content).__name__}; detection results are not annotations"
        )
    unlabelled = not needs_labels and content.get("annotations", []) == []
    records: dict[str, Any] = {}
    for key in LISTS:
        if unlabelled and key != "images" and content.get(key, []) == []:
            records[key] = None
            continue
        if key not in content:
            raise InputError(
                f"{json_file}: key '{key}' is missing (there are: {sorted(content)[:8]}); export "
                "the data set in COCO's object detection format"
            )
        records[key] = content[key]
        if not isinstance(records[key], list) or any(type(r) is not dict for r in records[key]):
            raise InputError(f"{json_file}: '{key}' must be a list of objects; export it again")
        if not records[key] and key != "annotations":
            raise InputError(f"{json_file}: '{key}' is empty; add at least one entry")
    return records, plain


def _parse(json_file: str) -> tuple[Any, bool]:
    """The parsed file, and whether it is plain UTF-8."""
    if not os.path.isfile(json_file):
        what = "is a folder" if os.path.isdir(json_file) else "the annotation file does not exist"
        remedy = "correct its path"
        if not os.path.isabs(json_file):
            remedy = (
                f"it is looked for in {os.getcwd()}; correct its path, or for a built-in data set "
                "let the environment variable DETECTRON2_DATASETS name the folder of data sets"
            )
        raise MissingFileError(f"{json_file}: {what}; {remedy}")
    try:
        with open(json_file, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"{json_file}: cannot be read ({error.strerror})") from error
    if not data.strip():
        raise InputError(f"{json_file}: the file is empty; export or copy it again")
    # Editors and exports of Windows write UTF-16, or UTF-8 with a byte order mark.
    encoding = json.detect_encoding(data[:4])
    twice: Counter[str] = Counter()

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice.update([k for k, n in Counter(key for key, _ in pairs).items() if n > 1])
        return made

    # Collecting garbage while millions of objects are made doubles the time to read COCO.
    collecting = gc.isenabled()
    gc.disable()
    try:
        text = data.decode(encoding)
        del data
        content = json.loads(text, object_pairs_hook=make)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{json_file}: not {encoding} text (byte {error.object[error.start]:#04x} at place "
            f"{error.start}); save it in UTF-8"
        ) from error
    except RecursionError as error:
        raise InputError(
            f"{json_file}: brackets are nested too deeply for a COCO json; export it again"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{json_file}: not valid json ({error}); it may be cut off: export or copy it again"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{json_file}: has a number of more than {sys.get_int_max_str_digits()} digits, which "
            "no field of a COCO json needs; correct or remove it"
        ) from error
    finally:
        if collecting:
            gc.enable()
    if twice:
        (key, count), kinds = twice.most_common(1)[0], len(twice)
        others = f", and {counted(kinds - 1, 'other key')}" if kinds > 1 else ""
        raise InputError(
            f"{json_file}: the key {shown(key)} occurs twice in one object, in "
            f"{counted(count, 'object')}{others}; only one of its values could be used: join "
            "them, or remove one"
        )
    return content, encoding == "utf-8"
