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
    the last box; right, near by, the reference of the first of them and its box in every layer. In
    DETR, which has no references, the way begins at the first box.

    Args:
        queries: of the decoder, at least one.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    num_layers = view.captured.num_layers("decoder")
    dense = view.captured.is_dense
    boxes = np.stack([view.boxes(layer) for layer in range(num_layers)])  # (layers, Q, 4)
    whole = sheet_of(view.image, 2)
    for query in queries:
        outline(whole.pixels, whole.at(boxes[-1, query]), GREEN, 1, edge=False)
    for query in queries:
        _draw_way(whole, centres(view, query, boxes[:, query]), num_layers)

    query = queries[0]
    start = view.boxes(0)[query] if dense else view.reference("decoder", 0, query)
    first = start[:2][None]
    if len(start) == 4 and not dense:
        first = np.stack((start[:2] - start[2:] / 2, start[:2] + start[2:] / 2))
    places = np.concatenate((first, boxes[:, query].reshape(-1, 2)))
    close = sheet_of(view.image, 2, window_around(places, view.image.shape))
    if len(start) == 4 and not dense:
        outline(close.pixels, close.at(first.ravel()), WHITE, 1)
    for layer in range(num_layers):
        outline(close.pixels, close.at(boxes[layer, query]), layer_color(layer, num_layers), LINE)
    _draw_way(close, centres(view, query, boxes[:, query]), num_layers)

    said = view.say(view.detection_of(query, num_layers - 1))
    panels = [
        Panel(
            f"the centres of the detections ({len(queries)}), with their last boxes", whole.pixels
        ),
        Panel(f"query {query}, near by: {said}", close.pixels),
    ]
    begin = "first box" if dense else "first reference"
    icons = [(dot_icon(FONT, WHITE, 4), begin)]
    icons += [
        (swatch(FONT, layer_color(layer, num_layers)), f"layer {layer}")
        for layer in range(num_layers)
    ]
    icons.append((box_icon(FONT, GREEN, 1, edge=False), "last box"))
    return picture(f"From the {begin} to the last box, layer by layer", panels, icons)


def centres(view: View, query: int, boxes: np.ndarray) -> np.ndarray:
    """
    Args:
        boxes: (layers, 4), (x1, y1, x2, y2) px, of the query.

    Returns:
        (1 + layers, 2), (x, y) px: of the first reference, then of the boxes; in DETR (layers, 2),
        of the boxes.
    """
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    if view.captured.is_dense:
        return middles
    return np.concatenate((view.reference("decoder", 0, query)[None, :2], middles))


def _draw_way(sheet: Sheet, way: np.ndarray, num_layers: int) -> None:
    """Arrows, each of the colour of the layer that it leads to."""
    places = sheet.at(way)
    for layer, (start, end) in enumerate(zip(places, places[1:]), num_layers - len(places) + 1):
        arrow(sheet.pixels, start, end, layer_color(layer, num_layers), LINE)
    dot(sheet.pixels, places[0], 3, WHITE)
