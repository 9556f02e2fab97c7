"""Panels with captions under one title and one legend: the frame of every picture."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..drawing import resized, side_by_side, text_lines
from ..marks import icon_legend

FONT = 16  # of captions and of the legend, px
#: Long side of an image, px: where it is alone, and where it has others beside it.
ALONE, BESIDE = 900, 600
#: The narrowest panel that captions can be read in, px.
MIN_WIDTH = 320


class Panel(NamedTuple):
    """(H, W, 3) uint8 RGB under a caption."""

    caption: str
    image: np.ndarray


class Sheet(NamedTuple):
    """
    An enlarged image, or part of one, to draw on.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        origin: (x, y), px of the image, of its upper left corner.
        scale: px of the sheet per px of the image.
    """

    pixels: np.ndarray
    origin: tuple[int, int]
    scale: float

    def at(self, places: np.ndarray) -> np.ndarray:
        """(..., 2 k) x and y in turn, px of the image -> px of the sheet."""
        places = np.asarray(places, dtype=np.float64)
        return (places - np.array(self.origin * (places.shape[-1] // 2))) * self.scale


def sheet_of(
    image: np.ndarray, num_panels: int = 1, window: tuple[int, int, int, int] | None = None
) -> Sheet:
    """
    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        num_panels: of the picture; one alone is larger.
        window: (x1, y1, x2, y2) of the part to show, px.
    """
    x1, y1, x2, y2 = window or (0, 0, image.shape[1], image.shape[0])
    side = ALONE if num_panels == 1 else BESIDE
    pixels, scale = resized(image[y1:y2, x1:x2], side)
    return Sheet(pixels, (x1, y1), scale)


def window_around(places: np.ndarray, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """
    Args:
        places: (n, 2), (x, y), px.
        shape: (H, W, ...) of the image.

    Returns:
        (x1, y1, x2, y2) px: the part of the image around all of `places` with some room, of the
        aspect of the image and at least a sixth of its sides, and a pixel.
    """
    size = np.array(shape[1::-1], dtype=np.float64)  # width first
    low, high = (np.clip(v, 0, size) for v in (places.min(0), places.max(0)))
    share = min(1.0, max(1 / 6, 1 / size.min(), 1.3 * float(((high - low) / size).max())))
    half = share * size / 2
    middle = np.clip((low + high) / 2, half, size - half)
    corners = np.floor(np.array((middle - half, middle + half)) + 0.5).astype(int)
    return tuple(corners.ravel().tolist())


def picture(
    title: str,
    panels: Sequence[Panel],
    icons: Sequence[tuple[np.ndarray, str]] = (),
    notes: Sequence[str] = (),
    columns: int = 2,
    least: int = MIN_WIDTH,
) -> np.ndarray:
    """
    Args:
        title: what is seen.
        panels: row by row.
        icons: (h, w, 4) RGBA and what each means.
        notes: sentences below the title.
        columns: at most so many panels beside each other.
        least: width that panels have at least, px.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns = min(columns, len(panels))
    width = max(least, max(panel.image.shape[1] for panel in panels))
    rows = [_row(panels[i : i + columns], columns, width) for i in range(0, len(panels), columns)]
    whole = rows[0].shape[1]
    above = [text_lines(title, whole, FONT + 4), *(text_lines(n, whole, FONT) for n in notes)]
    if icons:
        above.append(icon_legend(whole, icons, FONT))
    return np.concatenate([*above, *rows])


def _row(panels: Sequence[Panel], columns: int, width: int) -> np.ndarray:
    captions = [text_lines(panel.caption, width, FONT, left=0) for panel in panels]
    top = max(caption.shape[0] for caption in captions)
    cells = []
    for caption, panel in zip(captions, panels):
        cell = np.full((top + panel.image.shape[0], width, 3), 255, dtype=np.uint8)
        cell[: caption.shape[0]] = caption
        cell[top:, : panel.image.shape[1]] = panel.image
        cells.append(cell)
    return side_by_side(cells, columns, width)


def heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    The image in grey under the colours of a map of values.

    Args:
        image: (H, W, 3) uint8 RGB.
        values: (h, w), at least 0; the largest is the brightest.
    """
    height, width = image.shape[:2]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    share = values / max(float(values.max()), 1e-12)
    share = cv2.resize(share.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colors = colored(share)
    opaque = 0.75 * np.sqrt(np.clip(share, 0, 1))[..., None]
    return np.round((1 - opaque) * (0.6 * grey + 100) + opaque * colors).astype(np.uint8)


def colored(share: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 3) uint8 RGB, from dark violet to yellow."""
    levels = np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def color_bar() -> np.ndarray:
    """An icon of all colours of :func:`colored`, from low to high."""
    bar = np.full((FONT, 5 * FONT, 4), 255, dtype=np.uint8)
    bar[..., :3] = colored(np.tile(np.linspace(0, 1, 5 * FONT), (FONT, 1)))
    return bar


def share_color(value: float, low: float, high: float) -> tuple[int, int, int]:
    """(r, g, b) of :func:`colored`, of a value between `low` and `high`."""
    share = (value - low) / max(high - low, 1e-12)
    return tuple(int(v) for v in colored(np.array([[share]]))[0, 0])
