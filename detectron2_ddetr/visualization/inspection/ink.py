"""What is drawn on an image: dots, crosses, boxes, arrows; and the same as icons of a legend."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]

#: Of the levels, from the finest: of Okabe and Ito, apart for every eye; no green.
LEVEL_COLORS: list[Color] = [
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
    (150, 60, 160),
    (0, 90, 160),
    (255, 255, 255),
]
GREEN: Color = (0, 200, 80)
DARK, WHITE = (20, 20, 20), (255, 255, 255)
#: Fixed-point bits of the coordinates that OpenCV draws at.
_SHIFT = 4


def level_color(level: int) -> Color:
    """(r, g, b), 0-255."""
    return LEVEL_COLORS[level % len(LEVEL_COLORS)]


def layer_color(layer: int, num_layers: int) -> Color:
    """(r, g, b) from yellow, the first, over orange to dark violet, the last."""
    value = round(235 - 190 * layer / max(1, num_layers - 1))
    table = cv2.applyColorMap(np.array([[value]], dtype=np.uint8), cv2.COLORMAP_INFERNO)
    return tuple(int(v) for v in table[0, 0, ::-1])


def _fixed(*values: float) -> tuple[int, ...]:
    # Pixel (0, 0) has its centre at (0.5, 0.5) of the frame that boxes and points are in.
    return tuple(round((value - 0.5) * (1 << _SHIFT)) for value in values)


def dot(canvas: np.ndarray, xy: Sequence[float], radius: float, color: Color) -> None:
    """A disc with a dark edge; `canvas` is (H, W, 3) uint8, `xy` in px."""
    for r, c in ((radius + 1.2, DARK), (radius, color)):
        fine = round(r * (1 << _SHIFT))
        cv2.circle(canvas, _fixed(*xy), fine, c, -1, cv2.LINE_AA, _SHIFT)


def cross(canvas: np.ndarray, xy: Sequence[float], arm: float, color: Color = GREEN) -> None:
    """Upright, with a dark edge; `arm` is its length from the middle, px."""
    x, y = xy
    for thickness, c in ((max(5, round(arm / 2)), DARK), (max(2, round(arm / 4)), color)):
        more = 1 if c == DARK else 0
        for start, end in (
            ((x - arm - more, y), (x + arm + more, y)),
            ((x, y - arm - more), (x, y + arm + more)),
        ):
            ends = _fixed(*start), _fixed(*end)
            cv2.line(canvas, *ends, c, thickness, cv2.LINE_AA, _SHIFT)


def outline(
    canvas: np.ndarray, box: Sequence[float], color: Color, thickness: int = 2, edge: bool = True
) -> None:
    """A box, (x1, y1, x2, y2) px, with a dark edge."""
    corners = _fixed(*box[:2]), _fixed(*box[2:])
    for t, c in ((thickness + 2, DARK), (thickness, color)) if edge else ((thickness, color),):
        cv2.rectangle(canvas, *corners, c, t, cv2.LINE_AA, _SHIFT)


def arrow(
    canvas: np.ndarray, start: Sequence[float], end: Sequence[float], color: Color, thickness: int
) -> None:
    """From `start` to `end`, px, with a dark edge; its tip has a length of its own."""
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    if length < 1:
        return
    tip = min(0.5, (4 + 3 * thickness) / length)
    for t, c in ((thickness + 2, DARK), (thickness, color)):
        ends = _fixed(*start), _fixed(*end)
        cv2.arrowedLine(canvas, *ends, c, t, cv2.LINE_AA, _SHIFT, tip)


def icon(size: int, draw: Callable[[np.ndarray], None]) -> np.ndarray:
    """(size, W, 4) uint8 RGBA: what `draw` puts on white, for a legend; see :func:`icon_legend`."""
    patch = np.full((size, round(1.3 * size), 3), 255, dtype=np.uint8)
    draw(patch)
    return np.dstack((patch, np.full(patch.shape[:2], 255, dtype=np.uint8)))


def dot_icon(size: int, color: Color, radius: float = 6) -> np.ndarray:
    """As :func:`dot` draws it."""
    return icon(size, lambda patch: dot(patch, (0.65 * size, size / 2), radius, color))


def cross_icon(size: int) -> np.ndarray:
    """As :func:`cross` draws it."""
    return icon(size, lambda patch: cross(patch, (0.65 * size, size / 2), 6))


def box_icon(size: int, color: Color, thickness: int = 2, edge: bool = True) -> np.ndarray:
    """As :func:`outline` draws it."""
    box = (3, 3, 1.3 * size - 3, size - 3)
    return icon(size, lambda patch: outline(patch, box, color, thickness, edge))


def swatch(size: int, color: Color) -> np.ndarray:
    """A square of one colour."""
    return np.full((size, size, 4), (*color, 255), dtype=np.uint8)
