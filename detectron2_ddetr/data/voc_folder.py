"""Pascal VOC's data sets: an xml file of boxes for each image."""

import os
from typing import Any
from xml.etree import ElementTree

from ..errors import MissingFileError
from .findings import Findings
from .image_files import IMAGE_ENDINGS, image_sizes

#: Names of ImageSets/Main/NAME.txt for each split.
SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid", "test")}


def annotation_folder(path: str) -> str | None:
    """The folder of the xml files: `path`/Annotations, or `path` itself; None if there are none."""
    for folder in (os.path.join(path, "Annotations"), path):
        if os.path.isdir(folder) and any(name.endswith(".xml") for name in os.listdir(folder)):
            return folder
    return None


def voc_splits(path: str) -> list[str]:
    """Which of SPLITS ImageSets/Main lists; none if a folder has no such lists."""
    return [split for split in SPLITS if _list_of(path, split)]


def read_voc(path: str, split: str | None) -> dict[str, Any]:
    """
    The records of a split as a COCO json has them; file names are absolute paths.

    The classes are the names that occur in the folder, in alphabetical order, whatever the split.
    Corners are taken as VOC has them, px that count from 1 and belong to the box, as detectron2
    does. Boxes marked difficult become crowd regions, on which nothing depends.

    Args:
        split: of SPLITS; None for all xml files.

    Raises:
        MissingFileError: for an xml file that is listed and not there.
        InputError: lists all xml files that cannot be, and all images that are not there or cannot
            be used.
    """
    folder = annotation_folder(path)
    findings = Findings(folder)
    everything = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".xml"))
    found = {stem: _read_xml(os.path.join(folder, f"{stem}.xml"), findings) for stem in everything}
    names = sorted({name for _, objects in found.values() for name, _, _ in objects})
    stems = everything
    if split is not None:
        with open(_list_of(path, split), encoding="utf-8-sig") as file:
            stems = [line.split()[0] for line in file if line.strip()]
        missing = [stem for stem in stems if stem not in found]
        if missing:
            raise MissingFileError(
                f"{_list_of(path, split)}: names {missing[0]}, but there is no "
                f"{os.path.join(folder, missing[0])}.xml ({len(missing)} in all)"
            )
    files = [_image_of(path, folder, stem, found[stem][0], findings) for stem in stems]
    there = [file for file in files if file]
    sizes = image_sizes(there, f"{split or 'images'} of {path}", findings)
    findings.raise_problems()
    images, annotations = [], []
    for number, (stem, file, (width, height)) in enumerate(zip(stems, files, sizes)):
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        for name, (x0, y0, x1, y1), difficult in found[stem][1]:
            w, h = x1 - x0 + 1, y1 - y0 + 1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "iscrowd": int(difficult)}
                | {"category_id": names.index(name), "bbox": [x0 - 1, y0 - 1, w, h], "area": w * h}
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _list_of(path: str, split: str) -> str | None:
    files = [os.path.join(path, "ImageSets", "Main", f"{name}.txt") for name in SPLITS[split]]
    return next((file for file in files if os.path.isfile(file)), None)


def _image_of(path: str, folder: str, stem: str, said: str, findings: Findings) -> str | None:
    """The image of an xml file, of the name that it says or of its own; else None, a problem."""
    folders = [os.path.join(path, name) for name in ("JPEGImages", "images", "Images")]
    names = ([said] if said else []) + [stem + ending for ending in IMAGE_ENDINGS]
    for where in (*folders, folder, path):
        for name in names:
            if os.path.isfile(file := os.path.join(where, name)):
                return os.path.abspath(file)
    text = f"there is no image {said or stem} for it in JPEGImages, in images, or beside it"
    findings.problem("image", os.path.join(folder, f"{stem}.xml"), text)
    return None


def _read_xml(
    file: str, findings: Findings
) -> tuple[str, list[tuple[str, tuple[float, ...], bool]]]:
    """
    The image's file name, and (name, (xmin, ymin, xmax, ymax), difficult) of each object that can
    be.
    """
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        findings.problem("xml", file, f"is no xml ({error}); export it again")
        return "", []
    if root.tag != "annotation":
        findings.problem("tag", file, f"must begin with <annotation>, not <{root.tag}>")
        return "", []
    objects = []
    for number, entry in enumerate(root.iter("object"), start=1):
        name = (entry.findtext("name") or "").strip()
        if not name:
            findings.problem("name", file, f"object {number} has no <name>; add it")
            continue
        texts = [entry.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = tuple(float(text) for text in texts)
        except (TypeError, ValueError):
            wanted = "a <bndbox> with numbers xmin, ymin, xmax and ymax"
            text = f"object {number} ({name}) must have {wanted}, got {texts}"
            findings.problem("bndbox", file, text)
            continue
        difficult = (entry.findtext("difficult") or "0").strip() == "1"
        objects.append((name, box, difficult))
    # Tools of Windows write a whole path.
    said = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return said, objects
