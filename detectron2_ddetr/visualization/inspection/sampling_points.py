"""The points that an encoder cell, or a query of the decoder, reads."""

from collections.abc import Sequence

import numpy as np

from .ink import GREEN, WHITE, box_icon, cross, cross_icon, dot, dot_icon, level_color, outline
from .panels import FONT, Panel, Sheet, picture, sheet_of, window_around
from .view import Points, View

#: Of the largest weight, px.
MAX_RADIUS = 9.0
MIN_RADIUS = 1.5

#: An entry of a legend that has no icon.
AREA = np.zeros((FONT, 0, 4), dtype=np.uint8), "area: attention weight"


def encoder_points(
    view: View, pixel: tuple[float, float], layers: Sequence[int], level: int = 0
) -> np.ndarray:
    """
    What the encoder reads for the cell at a pixel, one panel per layer.

    Args:
        pixel: (x, y), px of the image.
        layers: of the encoder.
        level: that the cell belongs to.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    query = view.cell_at(*pixel, level)
    panels = []
    for layer in layers:
        points = view.points("encoder", layer, query)
        sheet = sheet_of(view.image, len(layers))
        draw_points(sheet, points)
        panels.append(Panel(f"encoder layer {layer}: {said_of(points, view)}", sheet.pixels))
    title = f"What the encoder reads for the pixel ({pixel[0]:.0f}, {pixel[1]:.0f})"
    icons = [*level_icons(view), (cross_icon(FONT), f"its cell of level {level}"), AREA]
    return picture(title, panels, icons)


def decoder_points(view: View, query: int, layers: Sequence[int]) -> np.ndarray:
    """
    What a query of the decoder reads, the box that it looked around and the box that it predicted:
    of the last of the layers in the whole image, then of each from near by.

    Args:
        query: from 0.
        layers: of the decoder.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    points = {layer: view.points("decoder", layer, query) for layer in layers}
    boxes = np.stack([view.boxes(layer)[query] for layer in layers]).reshape(-1, 2)
    window = window_around(np.concatenate([boxes, *(near(p) for p in points.values())]),
                           view.image.shape)  # fmt: skip

    def panel(layer: int, where: str, window: tuple[int, int, int, int] | None) -> Panel:
        sheet = sheet_of(view.image, 2, window)
        reference = points[layer].reference
        if len(reference) == 4:
            half = reference[2:] / 2
            box = np.concatenate((reference[:2] - half, reference[:2] + half))
            outline(sheet.pixels, sheet.at(box), WHITE, 1)
        outline(sheet.pixels, sheet.at(view.boxes(layer)[query]), GREEN, 2)
        draw_points(sheet, points[layer])
        return Panel(where, sheet.pixels)

    panels = [panel(layers[-1], f"layer {layers[-1]}, the whole image", None)]
    for layer in layers:
        said = f"{view.say(view.detection_of(query, layer))}; {said_of(points[layer], view)}"
        panels.append(panel(layer, f"layer {layer}, near by: {said}", window))
    title = f"What query {query} of the decoder reads: "
    title += view.say(view.detection_of(query, layers[-1]))
    icons = [*level_icons(view), (cross_icon(FONT), "reference")]
    if len(points[layers[-1]].reference) == 4:
        icons.append((box_icon(FONT, WHITE, 1), "reference box"))
    icons.append((box_icon(FONT, GREEN), "predicted box"))
    return picture(title, panels, [*icons, AREA])


def near(points: Points, share: float = 0.9) -> np.ndarray:
    """(k, 2), px: the points of the largest weights that together have this share."""
    order = np.argsort(-points.weights, kind="stable")
    count = int((points.weights[order].cumsum() < share).sum()) + 1
    return points.xy[order[:count]]


def draw_points(sheet: Sheet, points: Points) -> None:
    """Colour by level, area by weight; and the reference."""
    largest = max(float(points.weights.max()), 1e-12)
    # Small ones last, on top of large ones.
    for k in np.argsort(-points.weights, kind="stable"):
        radius = max(MIN_RADIUS, MAX_RADIUS * float(np.sqrt(points.weights[k] / largest)))
        dot(sheet.pixels, sheet.at(points.xy[k]), radius, level_color(int(points.levels[k])))
    cross(sheet.pixels, sheet.at(points.reference[:2]), 11)


def said_of(points: Points, view: View) -> str:
    """How many points there are, and how many of them lie where nothing is read."""
    height, width = view.image.shape[:2]
    outside = ((points.xy < 0) | (points.xy > (width, height))).any(1)
    said = f"{len(points.weights)} points"
    if outside.any():
        share = 100 * float(points.weights[outside].sum())
        said += f", {int(outside.sum())} outside the image ({share:.0f} % of the weight)"
    return said


def level_icons(view: View) -> list[tuple[np.ndarray, str]]:
    """The colours of the levels, for a legend."""
    return [
        (
            dot_icon(FONT, level_color(level)),
            f"level {level} ({width} x {height})",
        )
        for level, (height, width) in enumerate(view.shapes)
    ]
