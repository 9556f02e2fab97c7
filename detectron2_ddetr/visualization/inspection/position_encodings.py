"""What the position encoding of a map of cells looks like, and which cells it tells apart."""

import numpy as np
import torch

from ...modeling import PositionEmbeddingSine
from .ink import WHITE, outline
from .panels import Panel, color_bar, colored, picture

#: Another temperature to compare with: that of DAB-DETR and DINO.
OTHER = 20.0
WIDTH, HEIGHT = 560, 340  # px of a panel


def position_encodings(embedding: PositionEmbeddingSine, shape: tuple[int, int]) -> np.ndarray:
    """
    Above, the encoding along a row and along a column; below, how alike the cell in the middle and
    every other are, with the temperature of the model and with that of DAB-DETR and DINO.

    Args:
        embedding: of the model.
        shape: (H, W) of a map.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = shape
    encoded = encoding_of(embedding, shape)
    half = embedding.num_pos_feats
    said = "channels {} to {} from left to right, the {} cells of a {} from above"
    panels = [
        Panel(
            said.format(half, 2 * half - 1, width, "row"),
            _map(encoded[half:, height // 2].T, -1),
        ),
        Panel(
            said.format(0, half - 1, height, "column"),
            _map(encoded[:half, :, width // 2].T, -1),
        ),
    ]
    alike = {
        temperature: likeness(encoding_of(embedding, shape, temperature))
        for temperature in (embedding.temperature, OTHER)
    }
    low = min(float(values.min()) for values in alike.values())
    for temperature, values in alike.items():
        cell = WIDTH / max(shape)
        drawn = _map(values, low, (max(1, round(width * cell)), max(1, round(height * cell))))
        x, y = width // 2 * cell, height // 2 * cell
        outline(drawn, (x, y, x + cell, y + cell), WHITE, 1)
        panels.append(
            Panel(f"likeness to the cell in the middle, temperature {temperature:g}", drawn)
        )
    said = f"above from -1 to 1, below from {low:.2f} to 1"
    title = f"The position encoding of a map of {width} x {height} cells"
    return picture(title, panels, [(color_bar(), said)])


def encoding_of(
    embedding: PositionEmbeddingSine, shape: tuple[int, int], temperature: float | None = None
) -> np.ndarray:
    """(C, H, W) of a map without padding; with another temperature, all else as it is."""
    other = PositionEmbeddingSine(
        embedding.num_pos_feats,
        temperature or embedding.temperature,
        embedding.scale,
        embedding.offset,
        embedding.eps,
    )
    return other(torch.zeros(1, *shape, dtype=torch.bool))[0].numpy()


def likeness(encoded: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W): products of the cells' encodings with that of the middle, at most 1."""
    height, width = encoded.shape[1:]
    middle = encoded[:, height // 2, width // 2]
    return np.einsum("chw,c->hw", encoded, middle) / float(middle @ middle)


def _map(values: np.ndarray, low: float, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """A picture of `size`, (width, height) px: a rectangle for each value from `low` to 1."""
    share = (values - low) / max(1 - low, 1e-12)
    across = np.arange(size[0]) * values.shape[1] // size[0]
    down = np.arange(size[1]) * values.shape[0] // size[1]
    return np.ascontiguousarray(colored(share)[np.ix_(down, across)])
