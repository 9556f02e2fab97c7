"""What a data set holds, in a few lines that a person reads before a training."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .box_checks import copies_of
from .box_columns import BoxColumns, boxes_of
from .class_table import WIDTH
from .findings import counted, listed
from .image_files import ImageFiles
from .small_boxes import Resizing

#: A class with fewer boxes is hardly learnt, and its AP is left to chance.
RARE = 10
#: Sides of a square, px: COCO calls what is smaller than the first small, than the second medium.
SMALL, MEDIUM = 32, 96
#: px that a box may reach beyond its image, as roundings make it.
BEYOND = 1

_INDENT = 13  # columns
_NAMED = 5


@dataclass
class Split:
    """
    A data set as it is used.

    Attributes:
        name: in messages.
        dicts: of the images that are read.
        class_names: by class number; empty if they are not known.
        limits: config key -> how many boxes of an image a model can find by it.
        resizing: of its images.
        without_area: boxes without width or height that the dicts do not have any more.
        left_out: images without boxes that training leaves out.
    """

    name: str
    dicts: list[dict[str, Any]]
    class_names: Sequence[str]
    limits: Mapping[str, int]
    resizing: Resizing
    without_area: int = 0
    left_out: int = 0

    @cached_property
    def columns(self) -> BoxColumns:
        """All annotations, crowd regions and boxes without area among them."""
        return boxes_of(self.dicts)

    @cached_property
    def usable(self) -> np.ndarray:
        """(A,) bool: what is learnt from."""
        return (self.columns.boxes[:, 2:] > 0).all(axis=1) & ~self.columns.crowd

    @cached_property
    def per_image(self) -> np.ndarray:
        """(N,) number of usable boxes."""
        images = self.columns.image[self.usable]
        return np.bincount(images, minlength=len(self.dicts))

    def class_counts(self) -> list[int]:
        """The number of usable boxes of each class."""
        classes = self.columns.category[self.usable]
        return np.bincount(classes, minlength=len(self.class_names)).tolist()

    def crowded(self) -> dict[str, list[int]]:
        """Places of the images with more boxes than each limit, those with the most first."""
        order = np.argsort(-self.per_image, kind="stable")
        return {
            key: [int(i) for i in order if self.per_image[i] > limit]
            for key, limit in self.limits.items()
        }

    def named(self, places: Sequence[int]) -> str:
        """The first few images with their number of boxes."""
        return listed(
            [f"{self.file(i)} ({self.per_image[i]})" for i in places[: _NAMED + 1]], _NAMED
        )

    def file(self, place: int) -> str:
        """The name of an image file without its folders."""
        return os.path.basename(str(self.dicts[place].get("file_name")))


def describe(split: Split, files: ImageFiles, same: Sequence[Sequence[int]]) -> str:
    """
    The report of a data set, in lines of at most :data:`WIDTH` columns.

    Args:
        files: of its images.
        same: groups of places of images whose files are the same.
    """
    boxes = split.columns[split.usable]
    crowds = int(split.columns.crowd.sum())
    head = [counted(len(split.dicts), "image"), counted(len(boxes), "box", "boxes")]
    if crowds:
        head.append(counted(crowds, "crowd region"))
    found, clean = _amiss(split, boxes, files, same)
    if not len(boxes):
        head.append("so that it can be predicted on, not trained on")
    rows = [
        ("classes", _classes(split)),
        ("per image", _per_image(split)),
        ("box sizes", _box_sizes(boxes, files)),
        ("images", _image_sizes(files)),
        ("look at", "; ".join(found)),
        ("checked", clean and f"no {', no '.join(clean)}"),
    ]
    lines = _wrapped("", f"{split.name}: {', '.join(head)}")
    for label, text in rows:
        if text:
            lines += _wrapped(f"  {label:{_INDENT - 2}}", text)
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> list[str]:
    indent = " " * _INDENT
    return textwrap.wrap(
        text, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False
    )


def _name(split: Split, number: int) -> str:
    return split.class_names[number] if number < len(split.class_names) else f"class {number}"


def _classes(split: Split) -> str:
    """How the boxes are spread over the classes, and which have few."""
    counts = np.array(split.class_counts())
    total = counts.sum()
    if not total:
        return ""
    order = np.argsort(-counts, kind="stable").tolist()
    most = [f"{_name(split, i)} {counts[i] / total:.0%}" for i in order[: _NAMED + 1]]
    rare = [i for i in reversed(order) if counts[i] < RARE]
    few = listed([f"{_name(split, i)} ({counts[i]})" for i in rare], 2 * _NAMED)
    few = f"{len(rare)} rare, under {RARE} boxes: {few}" if rare else f"none under {RARE} boxes"
    return f"{len(counts)}: {listed(most, _NAMED)}; {few}"


def _per_image(split: Split) -> str:
    """How many boxes the images have."""
    if not len(split.per_image):
        return ""
    most = int(split.per_image.argmax())
    empty = int((split.per_image == 0).sum())
    text = f"median {np.median(split.per_image):g} boxes, most {split.named([most])}"
    if empty:
        text += f"; {counted(empty, 'image')} without boxes, kept as background"
    if split.left_out:
        text += f"; {counted(split.left_out, 'image')} without boxes left out of training, as "
        text += "DATALOADER.FILTER_EMPTY_ANNOTATIONS says"
    return text


def _box_sizes(boxes: BoxColumns, files: ImageFiles) -> str:
    """COCO's three sizes, and the median side."""
    areas = boxes.boxes[:, 2] * boxes.boxes[:, 3]
    if not len(areas):
        return ""
    small, medium = areas < SMALL**2, areas < MEDIUM**2
    shares = (small.mean(), (medium & ~small).mean(), (~medium).mean())
    sides = files.sizes[boxes.image].prod(axis=1)
    relative = np.sqrt(areas[sides > 0] / sides[sides > 0])
    text = "small {:.0%}, medium {:.0%}, large {:.0%}".format(*shares)
    text += f" (limits {SMALL} x {SMALL} and {MEDIUM} x {MEDIUM} px); median side "
    text += f"{np.median(np.sqrt(areas)):.3g} px"
    return text + (f", {np.median(relative):.2g} of the image's" if len(relative) else "")


def _image_sizes(files: ImageFiles) -> str:
    """The smallest and the largest, and how many are upright."""
    sizes = files.sizes[files.num_bytes >= 0]
    if not len(sizes):
        return ""
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    ends = ["{} x {}".format(*sizes[i]) for i in (order[0], order[-1])]
    text = f"{ends[0]} to {ends[1]} px" if (sizes != sizes[0]).any() else f"all {ends[0]} px"
    width, height = sizes.T
    shapes = {"landscape": width > height, "portrait": width < height, "square": width == height}
    text += "; " + ", ".join(f"{int(v.sum())} {name}" for name, v in shapes.items() if v.any())
    turned = int(files.turned.sum())
    return text + (f"; {turned} turned upright, as their EXIF says" if turned else "")


def _amiss(
    split: Split, boxes: BoxColumns, files: ImageFiles, same: Sequence[Sequence[int]]
) -> tuple[list[str], list[str]]:
    """What should be looked at; and what was looked for in vain."""
    found, clean = [], []

    def say(number: int, noun: str, plural: str, more: str = "") -> None:
        if number:
            found.append(f"{counted(number, noun, plural)}{more}")
        else:
            clean.append(noun)

    say(len(files.faults), "unusable image", "unusable images")
    columns = split.columns
    empty = int((~columns.crowd & ~split.usable).sum()) + split.without_area
    say(empty, "box without area", "boxes without area", " (not learnt)")
    sizes = files.sizes[boxes.image]
    start, end = boxes.boxes[:, :2], boxes.boxes[:, :2] + boxes.boxes[:, 2:]
    beyond = (sizes > 0).all(axis=1)
    beyond &= ((start < -BEYOND) | (end > sizes + BEYOND)).any(axis=1)
    words = "box reaching out of its image", "boxes reaching out of their images"
    say(int(beyond.sum()), *words, " (cut at the edge)")
    copies = copies_of(boxes.image, boxes.category, boxes.boxes)
    say(len(copies), "repeated box", "repeated boxes")
    groups = [
        " = ".join([*map(split.file, group[:_NAMED]), *(["..."] if group[_NAMED:] else [])])
        for group in same[: _NAMED + 1]
    ]
    number = sum(len(group) - 1 for group in same)
    say(number, "repeated image", "repeated images", f" ({listed(groups, _NAMED)})")
    for key, places in split.crowded().items():
        words = (f"{noun} over {key} {split.limits[key]}" for noun in ("image", "images"))
        say(len(places), *words, f": {split.named(places)}")
    return found, clean
