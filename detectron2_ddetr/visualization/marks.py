"""Hits, misses and false alarms: small signs on boxes, and the legend that explains them."""

import enum
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .hits import IOU_THRESHOLD
from .text import line_height, shortened, text_width, write


class Mark(enum.Enum):
    """What became of a box. Signs differ in shape, lightness and hue, for every eye."""

    HIT = f"hit (IoU >= {IOU_THRESHOLD:g})"
    FALSE_ALARM = "false alarm"
    MISSED = "missed"


#: Colours of Okabe and Ito.
_FILL = {Mark.HIT: "#0072b2", Mark.FALSE_ALARM: "#d55e00", Mark.MISSED: "#f0e442"}


@lru_cache(maxsize=None)
def sign(mark: Mark, side: int) -> np.ndarray:
    """(side, side, 4) uint8 RGBA: a disc with a tick, a square with a cross, a triangle with !"""
    fine = 8 * side  # drawn large, then reduced: smooth edges

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * fine, y * fine) for x, y in points]

    image = Image.new("RGBA", (fine, fine))
    draw, stroke = ImageDraw.Draw(image), round(0.12 * fine)
    if mark is Mark.HIT:
        draw.ellipse(at((0, 0), (1, 1)), "white")
        draw.ellipse(at((0.07, 0.07), (0.93, 0.93)), _FILL[mark])
        draw.line(at((0.25, 0.52), (0.44, 0.70), (0.75, 0.32)), "white", stroke, joint="curve")
    elif mark is Mark.FALSE_ALARM:
        draw.rectangle(at((0.04, 0.04), (0.96, 0.96)), "white")
        draw.rectangle(at((0.11, 0.11), (0.89, 0.89)), _FILL[mark])
        draw.line(at((0.28, 0.28), (0.72, 0.72)), "white", stroke)
        draw.line(at((0.28, 0.72), (0.72, 0.28)), "white", stroke)
    else:
        draw.polygon(at((0.5, 0), (1, 0.97), (0, 0.97)), "black")
        draw.polygon(at((0.5, 0.15), (0.88, 0.90), (0.12, 0.90)), _FILL[mark])
        draw.line(at((0.5, 0.38), (0.5, 0.66)), "black", stroke)
        draw.ellipse(at((0.43, 0.72), (0.57, 0.86)), "black")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def paste(canvas: np.ndarray, icon: np.ndarray, left: int, top: int) -> None:
    """Lays an RGBA `icon` on `canvas`, (H, W, 3) uint8; what reaches beyond its edges is cut."""
    patch = canvas[top : top + icon.shape[0], left : left + icon.shape[1]]
    icon = icon[: patch.shape[0], : patch.shape[1]].astype(np.float32)
    opaque = icon[..., 3:] / 255
    patch[:] = np.round((1 - opaque) * patch + opaque * icon[..., :3])


def legend(
    width: int,
    classes: Sequence[tuple[str, Sequence[int]]],
    notes: Sequence[str],
    size: int,
    marks: Iterable[Mark] = Mark,
) -> np.ndarray:
    """
    (H, `width`, 3) uint8: the signs, the colours of the classes, and notes without a sign.

    Args:
        classes: (name, (r, g, b)) each.
        size: of the font, px.
    """
    icons = [(sign(mark, round(1.2 * size)), mark.value) for mark in marks]
    for name, color in classes:
        swatch = np.full((size, size, 4), 255, dtype=np.uint8)
        swatch[..., :3] = color
        icons.append((swatch, name))
    icons += [(np.zeros((size, 0, 4), dtype=np.uint8), note) for note in notes]
    return icon_legend(width, icons, size)


def icon_legend(width: int, icons: Sequence[tuple[np.ndarray, str]], size: int) -> np.ndarray:
    """
    (H, `width`, 3) uint8: each icon, (h, w, 4) RGBA, before its text, in as many rows as it takes.

    Args:
        size: of the font, px.
    """
    height, gap = round(1.6 * size), size
    places, left, row = [], gap, 0
    texts = [shortened(text, size, max(1, width - 4 * gap)) for _, text in icons]
    for (icon, _), text in zip(icons, texts):
        needed = icon.shape[1] + size // 3 + text_width(text, size)
        if left > gap and left + needed > width:
            left, row = gap, row + 1
        places.append((left, row * height + gap // 2))
        left += needed + 2 * gap
    canvas = np.full(((row + 1) * height + gap, width, 3), 255, dtype=np.uint8)
    for (icon, _), text, (x, y) in zip(icons, texts, places):
        paste(canvas, icon, x, y + (height - icon.shape[0]) // 2)
        top = y + (height - line_height(size)) // 2
        write(canvas, text, x + icon.shape[1] + size // 3, top, size, (40, 40, 40))
    return canvas
