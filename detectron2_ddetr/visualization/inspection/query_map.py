"""Where each query puts its boxes, over many images (DETR, Fig. 7)."""

from collections.abc import Sequence

import numpy as np

from .ink import Color, swatch
from .panels import FONT, Panel, picture

SIDE, COLUMNS = 220, 5  # px of a panel; panels beside each other
BACKGROUND, FRAME = (32, 32, 32), (110, 110, 110)


def query_map(boxes: np.ndarray, queries: Sequence[int]) -> np.ndarray:
    """
    One panel per query, the unit square of all images: a point at the centre of each of its boxes,
    green for a small one, red for a wide one, blue for a tall one.

    Args:
        boxes: (n, Q, 4), (cx, cy, w, h) in [0, 1] of each of n images.
        queries: to show.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = []
    for query in queries:
        canvas = np.full((SIDE, SIDE, 3), BACKGROUND, dtype=np.uint8)
        canvas[[0, -1]] = canvas[:, [0, -1]] = FRAME
        own = boxes[:, query]
        # Large boxes first: a small one beside many large ones is to be seen.
        for cx, cy, width, height in own[np.argsort(-own[:, 2] * own[:, 3], kind="stable")]:
            x, y = (int(np.clip(round(v * (SIDE - 1)), 3, SIDE - 4)) for v in (cx, cy))
            canvas[y - 2 : y + 3, x - 2 : x + 3] = box_color(width, height)
        panels.append(Panel(f"query {query}", canvas))
    sizes = {"small": (0.0, 0.0), "large and wide": (1.0, 0.2), "large and tall": (0.2, 1.0)}
    sizes["the whole image"] = (1.0, 1.0)
    icons = [(swatch(FONT, box_color(*size)), name) for name, size in sizes.items()]
    title = f"Where queries put their boxes: the centres, on {len(boxes)} images"
    return picture(title, panels, icons, columns=COLUMNS, least=SIDE)


def box_color(width: float, height: float) -> Color:
    """
    (r, g, b) of a box of these sides, in [0, 1] of the image: (1 - s) green + s (t red + (1 - t)
    blue) with s the root of its area and t the share of its width.
    """
    width, height = (min(max(float(v), 0.0), 1.0) for v in (width, height))
    s, t = (width * height) ** 0.5, width / max(width + height, 1e-12)
    return round(255 * s * t), round(255 * (1 - s)), round(255 * s * (1 - t))
