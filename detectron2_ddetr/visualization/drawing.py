"""Boxes, tags and lines of text on images."""

import colorsys
import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import InputError
from .choice import CROWDED
from .marks import Mark, paste, sign
from .text import line_height, shortened, text_width, wrapped, write

MARGIN = 14  # px between the panels
#: Tags beyond this share of the image are left out, so that the photo can be seen.
MAX_TAGGED = 0.07
#: So are those that would hide more than this of the objects, each as a share of its box.
MAX_HIDDEN = 0.3

#: (x1, y1, x2, y2) px
Rectangle = tuple[int, int, int, int]


class Style(NamedTuple):
    """Of all boxes of an image; all in px."""

    thickness: int
    edge: int
    font: int


def style_of(shape: Sequence[int], num_boxes: int) -> Style:
    """
    Args:
        shape: (H, W, ...) of the image.
        num_boxes: a crowded image gets thinner lines and smaller text.
    """
    # That of a strip follows its short side, or no text would fit into it.
    side = min(max(shape[:2]), 4 * min(shape[:2]))
    crowded = num_boxes > CROWDED
    return Style(
        thickness=max(1, round(side / 400)),
        edge=0 if crowded else 1,
        font=max(12, round(side / (64 if crowded else 50))),
    )


def class_color(label: int) -> tuple[int, int, int]:
    """(r, g, b), 0-255; neighbouring class numbers get hues that are far apart."""
    # Steps of the golden ratio never come close to an earlier hue.
    hue = (0.02 + 0.618034 * label) % 1.0
    value = 0.95 if label % 2 == 0 else 0.8
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, value))


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """The number where there is no name."""
    return class_names[label] if class_names and label < len(class_names) else str(label)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    marks: Sequence[Mark | None] | None = None,
    style: Style | None = None,
) -> np.ndarray:
    """
    Draws boxes, and tags with class and score where they hide neither each other nor the photo.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        boxes: (T, 4) (x1, y1, x2, y2) in px of `image`.
        labels: (T,) class numbers, which choose the colours.
        scores: (T,) in [0, 1], or None to leave them out.
        class_names: written in place of the numbers; see :func:`.text.readable_names`.
        marks: (T,) signs at the corners of the boxes, None for none.
        style: that of an image with as many boxes, if not given.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    canvas = np.array(image, order="C")
    height, width = canvas.shape[:2]
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    boxes = np.clip(boxes, 0, (width - 1, height - 1) * 2)
    labels = [int(label) for label in labels]
    style = style or style_of(canvas.shape, len(boxes))
    # Large boxes first, so that small ones inside them stay visible.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind="stable").tolist()
    for index in order:
        _draw_rectangle(canvas, boxes[index], class_color(labels[index]), style)
    taken: list[Rectangle] = []
    for index in order if marks is not None else ():
        if marks[index] is not None:
            taken.append(_draw_mark(canvas, marks[index], boxes[index], style, taken))
    left = MAX_TAGGED * height * width
    for index in _one_of_each_class_first(order, labels):
        text = class_name(labels[index], class_names)
        # Without this, one long name would be wider than the picture.
        text = shortened(text, style.font, width / 3)
        if scores is not None:
            text += f" {float(scores[index]):.2f}"
        tag = _place_tag(canvas.shape, text, boxes[index], boxes, style, taken)
        if tag is None or (tag[2] - tag[0]) * (tag[3] - tag[1]) > left:
            continue
        _draw_tag(canvas, text, tag, class_color(labels[index]), style)
        taken.append(tag)
        left -= (tag[2] - tag[0]) * (tag[3] - tag[1])
    return canvas


def _one_of_each_class_first(order: Sequence[int], labels: Sequence[int]) -> list[int]:
    first = {}
    for index in order:
        first.setdefault(labels[index], index)
    return [*first.values(), *(i for i in order if first[labels[i]] != i)]


def _draw_rectangle(
    canvas: np.ndarray, box: np.ndarray, color: tuple[int, int, int], style: Style
) -> None:
    """Outlines `box`, (x1, y1, x2, y2) px, between dark edges that show on any background."""
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    if style.edge > 0:
        dark = tuple(v // 4 for v in color)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), dark, style.thickness + 2 * style.edge)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, style.thickness)


def _draw_mark(
    canvas: np.ndarray, mark: Mark, box: np.ndarray, style: Style, taken: Sequence[Rectangle]
) -> Rectangle:
    """Lays the sign on the corner of `box` where it hides no other; returns where."""
    height, width = canvas.shape[:2]
    side = round(1.1 * style.font)
    x1, y1, x2, y2 = box
    corners = np.array([(x, y) for y in (y1, y2) for x in (x1, x2)]) - side / 2
    upper = np.maximum(np.array([width, height]) - side, 0)
    corners = np.clip(np.round(corners), 0, upper).astype(int)
    places = np.concatenate([corners, corners + side], axis=1)
    place = tuple(places[int(np.argmin(_overlaps(places, taken).sum(1)))].tolist())
    paste(canvas, sign(mark, side), *place[:2])
    return place


def _place_tag(
    shape: Sequence[int],
    text: str,
    box: np.ndarray,
    boxes: np.ndarray,
    style: Style,
    taken: Sequence[Rectangle],
) -> Rectangle | None:
    """Where by `box` a tag hides nothing `taken` and least of the objects; None for nowhere."""
    pad = style.font // 3
    height, width = shape[:2]
    tag_width = min(text_width(text, style.font) + 2 * pad, width)
    tag_height = min(line_height(style.font) + 2, height)
    x1, y1, x2, y2 = box
    # In order of preference: above and below the box, inside it, and at last one line away from
    # it; left, right, in between.
    lefts = [x1, x2 - tag_width, (x1 + x2 - tag_width) / 2]
    tops = [y1 - tag_height, y2, y1, y2 - tag_height, (y1 + y2 - tag_height) / 2]
    tops += [y1 - 2 * tag_height, y2 + tag_height]
    corners = np.array([(left, top) for top in tops for left in lefts])
    # A corner that had to be moved into the image lies elsewhere then: still a valid place.
    upper = (width - tag_width, height - tag_height)
    corners = np.clip(np.round(corners), 0, upper).astype(int)
    places = np.concatenate([corners, corners + (tag_width, tag_height)], axis=1)
    places = places[_overlaps(places, taken).sum(1) == 0]
    if not len(places):
        return None
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1.0)
    hidden = (_overlaps(places, boxes) / areas).sum(1)
    best = int(np.argmin(hidden))
    return tuple(places[best].tolist()) if hidden[best] <= MAX_HIDDEN else None


def _draw_tag(
    canvas: np.ndarray, text: str, tag: Rectangle, color: tuple[int, int, int], style: Style
) -> None:
    x1, y1, x2, y2 = tag
    patch = canvas[y1:y2, x1:x2]
    patch[:] = (0.15 * patch + 0.85 * np.array(color)).astype(np.uint8)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    write(patch, text, style.font // 3, 1, style.font, ink)


def _overlaps(places: np.ndarray, others: Sequence[Rectangle] | np.ndarray) -> np.ndarray:
    """(P, N) areas in px^2 that each of `places` shares with each of `others`."""
    others = np.asarray(others).reshape(-1, 4)
    low = np.maximum(places[:, None, :2], others[:, :2])
    high = np.minimum(places[:, None, 2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def text_lines(text: str, width: int, size: int, left: int = MARGIN) -> np.ndarray:
    """(H, `width`, 3) uint8 white with dark text, in as many lines as it needs."""
    lines = wrapped(text, size, max(1, width - left))
    step = round(1.5 * size)
    canvas = np.full((len(lines) * step + size // 2, width, 3), 255, dtype=np.uint8)
    for number, line in enumerate(lines):
        write(canvas, line, left, number * step + size // 4, size, (40, 40, 40))
    return canvas


def side_by_side(cells: Sequence[np.ndarray], columns: int, width: int) -> np.ndarray:
    """
    Args:
        cells: (H_i, W_i, 3) uint8, from left to right; W_i at most `width`.
        columns: for so many there is room.
        width: of a column, px.

    Returns:
        (H, W, 3) uint8: the cells on white, with a margin around each but above.
    """
    height = max(cell.shape[0] for cell in cells) + MARGIN
    row = np.full((height, columns * (width + MARGIN) + MARGIN, 3), 255, dtype=np.uint8)
    for number, cell in enumerate(cells):
        left = MARGIN + number * (width + MARGIN)
        row[: cell.shape[0], left : left + cell.shape[1]] = cell
    return row


def resized(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """
    Before anything is drawn on it, so that lines and text are as sharp on a small image as on a
    large one.

    Args:
        image: (H, W, 3) uint8; not modified.
        side: the long side wanted, px.

    Returns:
        (h, w, 3) uint8, and h / H.
    """
    scale = side / max(image.shape[:2])
    shape = [max(1, round(scale * s)) for s in image.shape[1::-1]]  # width first
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image), shape, interpolation=interpolation), scale


def write_picture(picture: np.ndarray, path: str) -> None:
    """
    Args:
        picture: (H, W, 3) uint8 RGB.
        path: of the .png or .jpg; its folder is made if it does not exist.

    Raises:
        InputError: if it cannot be written.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if not cv2.imwrite(path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise InputError(f"{path}: cannot be written; check the folder, and the space that is left")
