"""One file for a browser: what the encoder reads for the pixel under the mouse."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .ink import level_color
from .view import View

TEMPLATE = Path(__file__).with_name("page.html")
#: Where a template has its data.
PLACE = "INSPECTED_DATA"
#: x and y are 16-bit numbers from the first of these to the second, as shares of the image.
LOW, HIGH = -1.0, 2.0
#: Bytes of points; the finest levels of queries are left out if all would be more.
MAX_BYTES = 8_000_000


def write_page(view: View, layers: Sequence[int], name: str, path: str) -> None:
    """
    Args:
        view: of an encoder with at least one layer.
        layers: of the encoder, to choose from on the page.
        name: of the image.
        path: of the file to write.
    """
    # "</" would end the script that holds the data.
    data = json.dumps(page_data(view, layers, name)).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8").replace(PLACE, data)
    Path(path).write_text(page, encoding="utf-8")


def page_data(view: View, layers: Sequence[int], name: str) -> dict[str, Any]:
    """
    Returns:
        dict: ready for json. The keys are:

        * "name"; "image": its JPEG as an address; "width", "height": px.
        * "low", "high": what 16-bit 0 and 65535 mean.
        * "colors": (r, g, b) by level; "sizes": [columns, rows] by level, of the whole map.
        * "pointLevels": the level of each of the K points of a query.
        * "queries": by level of queries, coarsest first, as far as there is room: "level",
          "columns", "rows" (of the cells in the image) and "layers", by name: "xy", base64 of
          (rows, columns, K, 2) uint16, and "sizes", of (rows, columns, K) uint8: 255 times the
          root of the weight as a share of the largest of the query.
    """
    record = view.captured.attention["encoder", layers[0]]
    _, num_cells, *per_query = record.attention_weights.shape  # (M, L, P)
    count = int(np.prod(per_query))
    point_levels = np.broadcast_to(np.arange(per_query[1])[:, None], per_query).ravel()
    height, width = view.image.shape[:2]
    queries, left = [], MAX_BYTES
    for level in reversed(range(len(view.shapes))):
        columns, rows = view.valid_cells(level)
        left -= columns * rows * count * 5 * len(layers)
        if left < 0 and queries:
            break
        encoded = {f"layer {layer}": _encoded(view, layer, level) for layer in layers}
        queries.append({"level": level, "columns": columns, "rows": rows, "layers": encoded})
    ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))
    return {
        "name": name,
        "image": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
        "width": width,
        "height": height,
        "low": LOW,
        "high": HIGH,
        "colors": [level_color(level) for level in range(len(view.shapes))],
        "sizes": [[w, h] for h, w in view.shapes],
        "pointLevels": point_levels.tolist(),
        "queries": queries,
    }


def _encoded(view: View, layer: int, level: int) -> dict[str, str]:
    """The points of all cells of a level that are image."""
    height, width = view.shapes[level]
    columns, rows = view.valid_cells(level)
    start = sum(h * w for h, w in view.shapes[:level])
    cells = slice(start, start + height * width)
    record = view.captured.attention["encoder", layer]
    locations = view.captured.in_image(record.sampling_locations[:, cells])[view.index]
    weights = record.attention_weights[view.index, cells]

    def in_image(values: np.ndarray) -> np.ndarray:
        return values.reshape(height, width, *values.shape[1:])[:rows, :columns]

    xy = in_image(locations.flatten(1, 3).float().cpu().numpy())  # (rows, columns, K, 2)
    share = in_image(weights.flatten(1).float().cpu().numpy())
    xy = np.round((xy - LOW) / (HIGH - LOW) * 65535).clip(0, 65535)
    sizes = np.round(255 * np.sqrt(share / share.max(-1, keepdims=True)))
    return {
        "xy": base64.b64encode(xy.astype("<u2").tobytes()).decode(),
        "sizes": base64.b64encode(sizes.astype(np.uint8).tobytes()).decode(),
    }
