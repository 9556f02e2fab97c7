"""Boxes as values: each by itself, and all of a file together."""

from collections.abc import Callable

import numpy as np

from .coco_annotations import Annotations
from .findings import Findings, counted, listed

#: Fewer boxes than this tell nothing about the whole file.
MIN_BOXES = 5
#: Copies of a box differ by no more than this, px, and not by more than 5 % of its shorter side.
MAX_ROUNDING = 0.5
#: More boxes than this share sticking out of their images are no accident.
MAX_OUTSIDE = 0.1


def check_boxes(
    found: Annotations, sizes: np.ndarray, name_of: Callable[[int], str], findings: Findings
) -> None:
    """
    Checks values of boxes, and clears `found.with_area` where there is nothing to learn from.

    Boxes without width or height are legal, since COCO's own train2017 has two, and so are boxes
    partly outside their image.

    Args:
        found: rows that are not sound are passed over.
        sizes: (N, 2) width and height of each image, px; 0, 0 where unknown.
        name_of: how messages name the annotation at a place.
    """
    sound = found.sound
    x, y, w, h = found.boxes.T
    width, height = _sizes_of(found, sizes)
    negative = sound & ((w < 0) | (h < 0))
    empty = sound & ~negative & ((w == 0) | (h == 0))
    outside = sound & ~negative & ~empty & (width > 0)
    rows = np.flatnonzero(outside & ~found.crowd & (width > 1) & (height > 1))
    suspicion = _suspicion(found.boxes[rows], np.stack((width[rows], height[rows]), axis=1))
    outside &= (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    for i in np.flatnonzero(negative):
        text = "has a negative width or height; the format is [x, y, w, h]"
        findings.problem("negative", name_of(i), f"bbox {_in_words(found.boxes[i])} {text}")
    for i in np.flatnonzero(outside):
        size = f"(width x height = {width[i]:g} x {height[i]:g})"
        text = f"lies wholly outside its image {size}; correct it or the image's size"
        text += suspicion and f". {suspicion}"
        findings.problem("outside", name_of(i), f"bbox {_in_words(found.boxes[i])} {text}")
    found.sound = sound & ~negative & ~outside
    # In single precision and clipped, as the mapper drops what has no area.
    limit_x, limit_y = (np.where(side > 0, side, np.inf) for side in (width, height))
    thin = np.zeros(len(x), dtype=bool)
    for start, length, limit in ((x, w, limit_x), (y, h, limit_y)):
        edges = [np.clip(edge, 0, limit).astype(np.float32) for edge in (start, start + length)]
        thin |= edges[1] <= edges[0]
    found.with_area = found.sound & ~empty & ~thin
    ignored = np.flatnonzero(found.sound & ~found.with_area)
    if len(ignored):
        ids = [found.ids[i] for i in ignored]
        findings.note(
            f"{counted(len(ignored), 'box', 'boxes')} without width or height: training leaves "
            f"them out, evaluation counts them as missed; annotation ids {listed(ids, 10)}"
        )
    _check_duplicates(found, name_of, findings)
    if suspicion:
        findings.note(suspicion)
    _check_all_together(found, sizes, name_of, findings)


def _in_words(box: np.ndarray) -> list[float]:
    """As the file has it, but for what of it would be too long."""
    numbers = [float(f"{v:.6g}") for v in box]
    return [int(v) if v.is_integer() else v for v in numbers]


def _sizes_of(found: Annotations, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A,) width and height of the image of each annotation, 0 where unknown."""
    rows = np.where(found.image >= 0, found.image, 0)
    known = found.image >= 0
    return tuple(np.where(known, sizes[rows, k], 0).astype(np.float64) for k in (0, 1))


def copies_of(image: np.ndarray, category: np.ndarray, boxes: np.ndarray) -> dict[int, int]:
    """
    Boxes that are there more than once, with the same class; copies may be rounded.

    Args:
        image, category: (A,) int.
        boxes: (A, 4) x, y, width, height, px, with an area.

    Returns:
        {row of a copy: an earlier row that it repeats}.
    """
    rows = np.lexsort((boxes[:, 0], category, image))
    image, category, boxes = image[rows], category[rows], boxes[rows]
    slack = np.minimum(MAX_ROUNDING, 0.05 * boxes[:, 2:].min(axis=1))
    copies: dict[int, int] = {}
    # A box beside the next one, then those that have one within reach beside the one after that.
    before, shift = np.arange(len(rows)), 0
    while len(before):
        shift += 1
        before = before[before + shift < len(rows)]
        after = before + shift
        near = (image[before] == image[after]) & (category[before] == category[after])
        near &= boxes[after, 0] - boxes[before, 0] <= slack[before]
        before, after = before[near], after[near]
        same = (np.abs(boxes[after] - boxes[before]) <= slack[before, None]).all(axis=1)
        for pair in zip(rows[before[same]].tolist(), rows[after[same]].tolist()):
            copies.setdefault(max(pair), min(pair))
    return copies


def _check_duplicates(
    found: Annotations, name_of: Callable[[int], str], findings: Findings
) -> None:
    """Notes boxes that are there more than once, with the same class; copies may be rounded."""
    rows = np.flatnonzero(found.with_area & ~found.crowd)
    copies = copies_of(found.image[rows], found.category[rows], found.boxes[rows])
    if copies:
        copy = min(copies)
        first, again = name_of(rows[copies[copy]]), found.ids[rows[copy]]
        findings.note(
            f"{len(copies)} of {len(rows)} boxes repeat another of the same image, class and "
            f"place (first: {first} and annotation {again!r}), as in exports that were joined; a "
            "detector that finds one cannot find the other: remove the copies"
        )


def _check_all_together(
    found: Annotations, sizes: np.ndarray, name_of: Callable[[int], str], findings: Findings
) -> None:
    """Notes, or refuses, boxes that cannot be [x, y, width, height] in px of their images."""
    width, height = _sizes_of(found, sizes)
    rows = np.flatnonzero(found.with_area & ~found.crowd & (width > 1) & (height > 1))
    if not len(rows):
        return
    boxes, width, height = found.boxes[rows], width[rows], height[rows]
    x, y, w, h = boxes.T
    small = (boxes <= 1).all(axis=1)
    if small.all():
        findings.problem(
            "normalised",
            "",
            f"no coordinate of {len(rows)} boxes exceeds 1 (the largest is {boxes.max():g}), "
            "so they are fractions of the image; multiply x and width by the image's width, y "
            "and height by its height",
        )
        return
    if small.any() and len(rows) >= MIN_BOXES:
        findings.note(
            f"{small.sum()} of {len(rows)} boxes lie within the first pixel of their image: "
            "are they fractions of its size?"
        )
    far = np.flatnonzero((x < -width) | (y < -height) | (x + w > 2 * width) | (y + h > 2 * height))
    if len(far):
        findings.note(
            f"{len(far)} of {len(rows)} boxes end more than an image beyond "
            f"their own (first: {name_of(rows[far[0]])}: {_in_words(boxes[far[0]])}); training "
            "cuts them at its edges, evaluation does not"
        )
    reach = max(((x + w) / width).max(), ((y + h) / height).max())
    if len(rows) >= 4 * MIN_BOXES and reach < 0.6:
        findings.note(
            f"no box reaches beyond {reach:.0%} of the width or height of its image: are "
            "they in px of a smaller image, or in percent?"
        )
    _check_areas(boxes, found.said_area[rows], findings)


def _check_areas(boxes: np.ndarray, said: np.ndarray, findings: Findings) -> None:
    """Notes areas, (A,) px^2 or NaN, that the boxes, (A, 4), can not have."""
    x, y, w, h = boxes.T
    # Half a pixel more on each side is how some tools count.
    larger = said > 1.01 * (w + 1) * (h + 1)
    if larger.any():
        findings.note(
            f"area exceeds width x height of the box in {larger.sum()} of {len(boxes)} "
            "annotations: is one of the two of another image size, or in another format?"
        )
    corners = (w > x) & (h > y)
    corners &= np.isclose(said, (w - x) * (h - y), rtol=0.01) & ~np.isclose(said, w * h, rtol=0.01)
    if len(boxes) >= MIN_BOXES and corners.mean() > 0.5:
        findings.note(
            f"area is that of corners [x0, y0, x1, y1] in {corners.sum()} of {len(boxes)} "
            "annotations, not width x height of the box: write x1 - x0 and y1 - y0 in place of x1 "
            "and y1"
        )


def _suspicion(boxes: np.ndarray, sides: np.ndarray) -> str:
    """
    That more boxes than by accident stick out of their images, and what would explain it; or "".

    Args:
        boxes: (A, 4) taken as x, y, width, height.
        sides: (A, 2) width and height of their images.
    """
    margin = np.maximum(1.0, 0.01 * sides)

    def sticks_out(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return ((start < -margin) | (end > sides + margin)).any(axis=1)

    start, size = boxes[:, :2], boxes[:, 2:]
    count = sticks_out(start, start + size).sum()
    if count < MIN_BOXES or count <= MAX_OUTSIDE * len(boxes):
        return ""
    guesses = []
    if (size > start).all(axis=1).mean() > 0.99 and not sticks_out(start, size).any():
        guesses.append("as corners [x0, y0, x1, y1] all would be inside")
    if not sticks_out(start - size / 2, start + size / 2).any():
        guesses.append("as [centre x, centre y, width, height] all would be inside")
    if not sticks_out(start[:, ::-1], start[:, ::-1] + size[:, ::-1]).any():
        guesses.append("with x and y swapped all would be inside")
    if not sticks_out(start, start + size[:, ::-1]).any():
        guesses.append("with width and height swapped all would be inside")
    why = " and ".join(guesses) or "are they of another image size?"
    return (
        f"{count} of {len(boxes)} boxes ({count / len(boxes):.0%}) stick out of their images, "
        f"taken as [x, y, width, height] in px; {why}"
    )
