"""What DETR attends to: maps over the whole image (DETR, Fig. 3 and 6)."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..drawing import class_color, draw_boxes
from .ink import GREEN, box_icon, cross, cross_icon, outline
from .panels import FONT, Panel, color_bar, heat, picture, sheet_of
from .view import View

#: Maps of one picture.
MAX_MAPS = 6
#: Cells that an object attends to less than this share of its most are not coloured.
LEAST = 0.15


def encoder_maps(view: View, pixels: Sequence[tuple[float, float]], layer: int) -> np.ndarray:
    """
    What the encoder reads for the cells at some pixels: a map each, the mean over heads.

    Args:
        pixels: (x, y) each, px of the image.
        layer: of the encoder.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = []
    for x, y in pixels[:MAX_MAPS]:
        values = view.attention_map("encoder", layer, view.cell_at(x, y, 0))
        sheet = sheet_of(view.image, 2)
        sheet = sheet._replace(pixels=heat(sheet.pixels, values))
        cross(sheet.pixels, sheet.at(np.array((x, y))), 11)
        panels.append(Panel(f"pixel ({x:.0f}, {y:.0f}): {_said(values)}", sheet.pixels))
    icons = [(color_bar(), "attention, from 0 to the largest"), (cross_icon(FONT), "the pixel")]
    return picture(f"What layer {layer} of the encoder attends to", panels, icons)


def decoder_maps(view: View, queries: Sequence[int], layer: int, what: str) -> np.ndarray:
    """
    What queries read, with the box that each predicts: a map each, the mean over heads.

    Args:
        queries: of the decoder.
        layer: likewise.
        what: these queries are, for the title.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = []
    for query in queries[:MAX_MAPS]:
        values = view.attention_map("decoder", layer, query)
        sheet = sheet_of(view.image, 2)
        sheet = sheet._replace(pixels=heat(sheet.pixels, values))
        outline(sheet.pixels, sheet.at(view.boxes(layer)[query]), GREEN, 2)
        said = view.say(view.detection_of(query, layer))
        panels.append(Panel(f"query {query}, {said}: {_said(values)}", sheet.pixels))
    icons = [
        (color_bar(), "attention, from 0 to the largest"),
        (box_icon(FONT, GREEN), "predicted box"),
    ]
    return picture(f"What {what} attend to in layer {layer} of the decoder", panels, icons)


def attention_of_objects(view: View, queries: Sequence[int], layer: int) -> np.ndarray:
    """
    What several queries read, in one image: a colour and a box each.

    Args:
        queries: of the decoder, at most as many as are told apart are drawn.
        layer: likewise.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    queries = list(queries[:MAX_MAPS])
    sheet = sheet_of(view.image)
    size = sheet.pixels.shape[1::-1]
    grey = cv2.cvtColor(cv2.cvtColor(sheet.pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shares = []
    for query in queries:
        values = view.attention_map("decoder", layer, query)
        share = (values / max(float(values.max()), 1e-12)).astype(np.float32)
        shares.append(np.clip(cv2.resize(share, size, interpolation=cv2.INTER_LINEAR), 0, 1))
    most, owner = np.max(shares, axis=0), np.argmax(shares, axis=0)
    colors = np.array([class_color(i) for i in range(len(queries))], dtype=np.float64)[owner]
    opaque = np.where(most < LEAST, 0.0, 0.85 * most)[..., None]
    painted = np.round((1 - opaque) * (0.7 * grey + 60) + opaque * colors).astype(np.uint8)
    names = [f"{q}: {view.say(view.detection_of(q, layer))}" for q in queries]
    boxes = sheet.at(view.boxes(layer)[queries])
    drawn = draw_boxes(painted, boxes, range(len(queries)), class_names=names)
    caption = (
        "a place has the colour of the query whose attention there is nearest to its own largest"
    )
    title = f"What the detections attend to in layer {layer} of the decoder"
    return picture(title, [Panel(caption, drawn)])


def _said(values: np.ndarray) -> str:
    """On how few cells half of the attention is."""
    order = np.sort(values.ravel())[::-1]
    total = float(order.sum())
    count = int((order.cumsum() < 0.5 * total).sum()) + 1
    return f"half of it on {count} of {values.size} cells"
