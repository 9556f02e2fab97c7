"""Boxes, tags and lines of text on images."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

MARGIN = 14  # px between the panels
FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_color(label: int) -> tuple[int, int, int]:
    """(r, g, b), 0-255; neighbouring class numbers get hues that are far apart."""
    # Steps of the golden ratio never come close to an earlier hue.
    hue = (0.02 + 0.618034 * label) % 1.0
    value = 0.95 if label % 2 == 0 else 0.8
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, value))


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """
    Draws boxes with their class and score.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        boxes: (T, 4) (x1, y1, x2, y2) in px of `image`.
        labels: (T,) class numbers, which choose the colours.
        scores: (T,) in [0, 1], or None to leave them out.
        class_names: written in place of the numbers.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    canvas = np.array(image, order="C")
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    height, width = canvas.shape[:2]
    # A crowded image gets thinner lines and smaller text, down to what can still be read.
    crowded = len(boxes) > 12
    thickness = max(1, round(max(height, width) / 400))
    edge = 0 if crowded else 1
    # Large boxes first, so that small ones inside them stay visible.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind="stable")
    for index in order:
        _draw_rectangle(canvas, boxes[index], class_color(int(labels[index])), thickness, edge)
    taken: list[tuple[int, int, int, int]] = []
    font_px = max(9.0, max(height, width) / (68 if crowded else 55))
    for index in order:
        label = int(labels[index])
        text = str(label) if class_names is None else class_names[label]
        if scores is not None:
            text += f" {float(scores[index]):.2f}"
        taken.append(_draw_tag(canvas, text, boxes[index], class_color(label), font_px, taken))
    return canvas


def _draw_rectangle(
    canvas: np.ndarray, box: np.ndarray, color: tuple[int, int, int], thickness: int, edge: int
) -> None:
    """Outlines `box`, (x1, y1, x2, y2) px, between dark edges that show on any background."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.round(np.clip(box, 0, (width - 1, height - 1) * 2)).astype(int).tolist()
    if edge > 0:
        dark = tuple(v // 4 for v in color)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), dark, thickness + 2 * edge)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)


def _draw_tag(
    canvas: np.ndarray,
    text: str,
    box: np.ndarray,
    color: tuple[int, int, int],
    font_px: float,
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Writes `text` by `box` where it hides no other tag; returns where, (x1, y1, x2, y2) px."""
    scale = font_px / 21.0  # the capitals of this font are 21 px high at scale 1
    weight = max(1, round(scale * 1.6))
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, scale, weight)
    pad = max(2, round(font_px / 4))
    size = np.array([text_width + 2 * pad, text_height + 2 * pad])
    height, width = canvas.shape[:2]

    x1, y1, x2, y2 = box
    tag_width, tag_height = size.tolist()
    # In order of preference: above and below the box, inside it, and at last one line away from
    # it; left, right, in between.
    lefts = [x1, x2 - tag_width, (x1 + x2 - tag_width) / 2]
    tops = [y1 - tag_height, y2, y1, y2 - tag_height, (y1 + y2 - tag_height) / 2]
    tops += [y1 - 2 * tag_height, y2 + tag_height]
    corners = np.array([(left, top) for top in tops for left in lefts])
    upper = np.maximum(np.array([width, height]) - size, 0)
    # A corner that had to be moved into the image lies elsewhere then: still a valid place.
    corners = np.clip(np.round(corners), 0, upper).astype(int)
    costs = [_overlap((*corner, *(corner + size)), taken) for corner in corners]
    left, top = corners[int(np.argmin(costs))].tolist()

    patch = canvas[top : top + tag_height, left : left + tag_width]
    patch[:] = (0.15 * patch + 0.85 * np.array(color)).astype(np.uint8)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    origin = (left + pad, top + pad + text_height)
    cv2.putText(canvas, text, origin, FONT, scale, ink, weight, cv2.LINE_AA)
    return left, top, left + tag_width, top + tag_height


def _overlap(tag: tuple[int, int, int, int], taken: Sequence[tuple[int, int, int, int]]) -> float:
    """Area in px^2 that `tag` shares with the `taken` ones; all (x1, y1, x2, y2)."""
    if not taken:
        return 0.0
    others = np.array(taken)
    low = np.maximum(others[:, :2], tag[:2])
    high = np.minimum(others[:, 2:], tag[2:])
    return float(np.clip(high - low, 0, None).prod(axis=1).sum())


def text_line(text: str, width: int, font_px: float, left: int = MARGIN) -> np.ndarray:
    """(H, `width`, 3) uint8 white line with dark text that shrinks to fit."""
    scale = font_px / 21.0
    weight = 2 if font_px > 14 else 1
    text_width = cv2.getTextSize(text, FONT, scale, weight)[0][0]
    scale *= min(1.0, (width - left) / max(text_width, 1))
    line = np.full((round(font_px * 2.2), width, 3), 255, dtype=np.uint8)
    origin = (left, round(font_px * 1.6))
    cv2.putText(line, text, origin, FONT, scale, (40, 40, 40), weight, cv2.LINE_AA)
    return line
