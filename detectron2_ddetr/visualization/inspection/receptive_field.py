"""How far a cell of the encoder sees when layers of attention follow on each other."""

import numpy as np
import torch
from torch import Tensor

from .ink import cross, cross_icon, dot, level_color
from .panels import FONT, Panel, picture, sheet_of
from .sampling_points import AREA, MAX_RADIUS, MIN_RADIUS, level_icons
from .view import View

#: So much of the weight is drawn, the largest cells of it: the rest would be a fog.
SHOWN = 0.95


def receptive_field(view: View, pixel: tuple[float, float], level: int = 0) -> np.ndarray:
    """
    The cells that reach the cell at a pixel through the last encoder layer, the last two, ...: what
    it reads, what these cells read one layer before, and so on. Of the attention alone; what a
    cell keeps of itself beside it, and the values, are not in it.

    Args:
        pixel: (x, y), px of the image.
        level: that the cell belongs to.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    num_layers = view.captured.num_layers("encoder")
    centres = _centres(view)
    query = view.cell_at(*pixel, level)
    cells = torch.zeros(len(centres), dtype=torch.float64)
    cells[query] = 1.0
    levels = np.repeat(np.arange(len(view.shapes)), [h * w for h, w in view.shapes])
    panels = []
    for depth in range(1, num_layers + 1):
        cells = spread(view, num_layers - depth, cells)
        sheet = sheet_of(view.image, num_layers)
        weights = cells.numpy()
        order = np.argsort(-weights, kind="stable")
        shown = order[: int((weights[order].cumsum() < SHOWN * weights.sum()).sum()) + 1]
        shown = shown[weights[shown] > 0]  # all may have been read outside of the image
        # Small ones last, on top of large ones.
        for k in shown:
            radius = max(MIN_RADIUS, MAX_RADIUS * float(np.sqrt(weights[k] / weights[order[0]])))
            dot(sheet.pixels, sheet.at(centres[k]), radius, level_color(int(levels[k])))
        cross(sheet.pixels, sheet.at(centres[query]), 11)
        layers = "the last layer" if depth == 1 else f"the last {depth} layers"
        said = f"{100 * SHOWN:.0f} % of the weight on {len(shown)} of {len(cells)} cells"
        panels.append(Panel(f"through {layers}: {said}", sheet.pixels))
    title = (
        f"What reaches the pixel ({pixel[0]:.0f}, {pixel[1]:.0f}) through the encoder's attention"
    )
    return picture(title, panels, [*level_icons(view), (cross_icon(FONT), "the cell"), AREA])


def spread(view: View, layer: int, cells: Tensor) -> Tensor:
    """
    Args:
        layer: of the encoder.
        cells: (S,) float64, a weight of each cell of all levels after that layer.

    Returns:
        (S,) the weights of the cells before it that these were read from; what was read outside
        of the valid image is lost.
    """
    record = view.captured.attention["encoder", layer]
    queries = cells.nonzero().flatten()
    locations = record.sampling_locations[view.index, queries].double().cpu()  # (q, M, L, P, 2)
    weights = record.attention_weights[view.index, queries].double().cpu()  # (q, M, L, P)
    # Every head is as good as the other.
    weights = weights * cells[queries].view(-1, 1, 1, 1) / weights.shape[1]
    spread_to = torch.zeros_like(cells)
    start = 0
    for level, (height, width) in enumerate(view.shapes):
        size = torch.tensor((width, height), dtype=torch.float64)
        places = locations[:, :, level] * size - 0.5  # (q, M, P, 2), in cells
        corner = places.floor()
        for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
            cell = corner + torch.tensor(step)
            share = (1 - (places - cell).abs()).prod(-1) * weights[:, :, level]
            inside = ((cell >= 0) & (cell < size)).all(-1)
            index = start + cell[..., 1] * width + cell[..., 0]
            spread_to.index_add_(0, index[inside].long(), share[inside])
        start += height * width
    padding_mask = view.captured.memory.padding_mask
    if padding_mask is not None:
        spread_to = spread_to.masked_fill(padding_mask[view.index].cpu(), 0.0)
    return spread_to


def _centres(view: View) -> np.ndarray:
    """(S, 2), (x, y) px: of all cells."""
    record = view.captured.attention["encoder", 0]
    references = record.level_reference_points[view.index, :, 0]
    return view.to_pixels(references / view.captured.memory.valid_ratios[view.index, 0])
