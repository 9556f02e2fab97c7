"""YOLO's data sets: a data.yaml, folders of images, and a text file of boxes beside each."""

import os
from collections.abc import Sequence
from typing import Any

import yaml

from ..errors import InputError, MissingFileError
from .findings import Findings, shown
from .image_files import IMAGE_ENDINGS, image_sizes

#: Keys of data.yaml for each split; exports call the second one by either name.
SPLITS = {"train": ("train",), "val": ("val", "valid", "test")}


def yaml_of(path: str) -> str | None:
    """The data.yaml that `path` is, or has in it; None if there is none."""
    if path.endswith((".yaml", ".yml")):
        return path
    found = [os.path.join(path, name) for name in ("data.yaml", "data.yml", "dataset.yaml")]
    return next((name for name in found if os.path.isfile(name)), None)


def yolo_splits(yaml_file: str) -> list[str]:
    """Which of SPLITS a data.yaml names."""
    content = _read_yaml(yaml_file)
    return [split for split, keys in SPLITS.items() if any(content.get(key) for key in keys)]


def read_yolo(yaml_file: str, split: str) -> dict[str, Any]:
    """
    The records of a split as a COCO json has them; file names are absolute paths.

    An image without a text file, or with an empty one, has no boxes. A line is
    `class cx cy width height` in fractions of the image, or `class x y x y ...`, an outline whose
    extent is taken.

    Raises:
        MissingFileError: for folders and files that are named and not there.
        InputError: lists all images that cannot be used and all lines that cannot be, by file and
            line, and what is wrong.
    """
    content = _read_yaml(yaml_file)
    names = _class_names(content, yaml_file)
    key = next(key for key in SPLITS[split] if content.get(key))
    files = _image_files(content, key, yaml_file)
    findings = Findings(yaml_file)
    sizes = image_sizes(files, f"{split} of {yaml_file}", findings)
    images, annotations = [], []
    for number, (file, (width, height)) in enumerate(zip(files, sizes)):
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        for label, box in _read_labels(_labels_of(file), len(names), findings):
            x0, y0, x1, y1 = (side * size for side, size in zip(box, (width, height) * 2))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label}
                | {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
                | {"area": (x1 - x0) * (y1 - y0)}
            )
    findings.raise_problems()
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_yaml(yaml_file: str) -> dict[str, Any]:
    try:
        with open(yaml_file, encoding="utf-8-sig") as file:
            content = yaml.safe_load(file)
    except FileNotFoundError as error:
        raise MissingFileError(f"{yaml_file} does not exist; correct its path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{yaml_file}: not YAML that can be read ({error})") from error
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{yaml_file}: 'names', the classes, is missing: is it YOLO's data.yaml?")
    return content


def _class_names(content: dict[str, Any], yaml_file: str) -> list[str]:
    """By class number; `names` may be a list, or number -> name."""
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise InputError(f"{yaml_file}: the numbers in 'names' must be 0, 1, 2, ...")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{yaml_file}: 'names' must be a list of the classes, got {names!r}")
    return [str(name) for name in names]


def _image_files(content: dict[str, Any], key: str, yaml_file: str) -> list[str]:
    """Absolute paths of the images of a split, sorted."""
    folder = os.path.dirname(os.path.abspath(yaml_file))
    root = os.path.join(folder, str(content.get("path") or ""))
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    files: list[str] = []
    for entry in entries:
        # Exports write ../train/images, where train/images is meant.
        tried = [os.path.join(base, str(entry)) for base in (root, folder)]
        tried += [os.path.join(folder, str(entry).removeprefix("../"))]
        place = next((path for path in tried if os.path.exists(path)), None)
        if place is None:
            raise MissingFileError(
                f"{yaml_file}: '{key}' names {entry}, but there is no {tried[0]}; correct it, or "
                "'path'"
            )
        if os.path.isfile(place):
            with open(place, encoding="utf-8-sig") as file:
                lines = [line.strip() for line in file if line.strip()]
            base = os.path.dirname(place)
            files += [os.path.normpath(os.path.join(base, line)) for line in lines]
            continue
        for where, folders, found in os.walk(place):
            folders.sort()
            names = [name for name in found if name.lower().endswith(IMAGE_ENDINGS)]
            files += [os.path.normpath(os.path.join(where, name)) for name in names]
    if not files:
        raise InputError(f"{yaml_file}: there is no image in what '{key}' names, {content[key]}")
    return sorted(dict.fromkeys(files))


def _labels_of(image_file: str) -> str:
    """YOLO's rule: "labels" in place of the last folder "images", or else beside the image."""
    stem = os.path.splitext(image_file)[0]
    before, middle, after = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}.txt" if middle else f"{stem}.txt"


def _read_labels(
    file_name: str, num_classes: int, findings: Findings
) -> list[tuple[int, Sequence[float]]]:
    """(class, (x0, y0, x1, y1) in fractions of the image) of each line that can be."""
    if not os.path.isfile(file_name):
        return []
    try:
        with open(file_name, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        findings.problem("text", file_name, f"is not text ({error}); export it again")
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        if words := line.split():
            try:
                found.append(_class_and_box(words, num_classes))
            except _Fault as fault:
                findings.problem(fault.kind, f"{file_name}, line {number}", fault.text)
    return found


class _Fault(Exception):
    """What is wrong with a line, and of which kind that is."""

    def __init__(self, kind: str, text: str):
        super().__init__(kind, text)
        self.kind, self.text = kind, text


def _class_and_box(words: list[str], num_classes: int) -> tuple[int, Sequence[float]]:
    try:
        label, *values = (float(word) for word in words)
    except ValueError as error:
        raise _Fault("numbers", f"must be numbers, got {shown(' '.join(words))}") from error
    if not 0 <= label < num_classes or label != int(label):
        known = f"0 to {num_classes - 1}, which 'names' has"
        raise _Fault("class", f"class {words[0]} is none of {known}; correct it, or 'names'")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        forms = "'class cx cy width height' or 'class x y x y x y ...'"
        raise _Fault("count", f"must be {forms}, got {len(words)} numbers")
    if not all(-0.01 <= value <= 1.01 for value in values):
        worst = f"{max(values, key=abs):g}"
        raise _Fault("range", f"{worst} is no fraction of the image: coordinates go from 0 to 1")
    if len(values) == 4:
        cx, cy, w, h = values
        return int(label), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    xs, ys = values[0::2], values[1::2]
    return int(label), (min(xs), min(ys), max(xs), max(ys))
