"""How references and boxes of queries move through the layers of the decoder."""

from collections.abc import Sequence

import numpy as np

from .ink import GREEN, WHITE, arrow, box_icon, dot, dot_icon, layer_color, outline, swatch
from .panels import FONT, Panel, Sheet, picture, sheet_of, window_around
from .view import View

#: Thickness, px.
LINE = 2


def trajectory(view: View, queries: Sequence[int]) -> np.ndarray:
    """
    Left, in the whole image, the way of the centres of all `queries`, from the first reference to
    the last box; right, near by, the reference of the first of them and its box in every layer.

    Args:
        queries: of the decoder, at least one.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    num_layers = view.captured.num_layers("decoder")
    boxes = np.stack([view.boxes(layer) for layer in range(num_layers)])  # (layers, Q, 4)
    whole = sheet_of(view.image, 2)
    for query in queries:
        outline(whole.pixels, whole.at(boxes[-1, query]), GREEN, 1, edge=False)
    for query in queries:
        _draw_way(whole, centres(view, query, boxes[:, query]))

    query = queries[0]
    start = view.reference("decoder", 0, query)
    first = start[:2][None]
    if len(start) == 4:
        first = np.stack((start[:2] - start[2:] / 2, start[:2] + start[2:] / 2))
    places = np.concatenate((first, boxes[:, query].reshape(-1, 2)))
    close = sheet_of(view.image, 2, window_around(places, view.image.shape))
    if len(start) == 4:
        outline(close.pixels, close.at(first.ravel()), WHITE, 1)
    for layer in range(num_layers):
        outline(close.pixels, close.at(boxes[layer, query]), layer_color(layer, num_layers), LINE)
    _draw_way(close, centres(view, query, boxes[:, query]))

    said = view.say(view.detection_of(query, num_layers - 1))
    panels = [
        Panel(
            f"the centres of the detections ({len(queries)}), with their last boxes", whole.pixels
        ),
        Panel(f"query {query}, near by: {said}", close.pixels),
    ]
    icons = [(dot_icon(FONT, WHITE, 4), "first reference")]
    icons += [
        (swatch(FONT, layer_color(layer, num_layers)), f"layer {layer}")
        for layer in range(num_layers)
    ]
    icons.append((box_icon(FONT, GREEN, 1, edge=False), "last box"))
    return picture("From the reference to the box, layer by layer", panels, icons)


def centres(view: View, query: int, boxes: np.ndarray) -> np.ndarray:
    """
    Args:
        boxes: (layers, 4), (x1, y1, x2, y2) px, of the query.

    Returns:
        (1 + layers, 2), (x, y) px: of the first reference, then of the boxes.
    """
    reference = view.reference("decoder", 0, query)[:2]
    return np.concatenate((reference[None], (boxes[:, :2] + boxes[:, 2:]) / 2))


def _draw_way(sheet: Sheet, way: np.ndarray) -> None:
    num_layers = len(way) - 1
    places = sheet.at(way)
    for layer in range(num_layers):
        color = layer_color(layer, num_layers)
        arrow(sheet.pixels, places[layer], places[layer + 1], color, LINE)
    dot(sheet.pixels, places[0], 3, WHITE)
