"""What the encoder of a two-stage model proposes: where queries start from."""

import numpy as np

from ...modeling import box_cxcywh_to_xyxy
from ...modeling.two_stage import OBJECTNESS_CHANNEL
from .ink import dot, level_color, outline
from .panels import Panel, color_bar, picture, share_color, sheet_of
from .sampling_points import level_icons
from .view import View

#: Boxes that are drawn; more would hide each other.
NUM_BOXES = 20


def proposals(view: View) -> np.ndarray:
    """
    Left the centres of all proposals that become queries, coloured by the level of their cell;
    right the boxes of the best, coloured by their score.

    Args:
        view: of a two-stage model.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if its encoder proposes nothing.
    """
    if view.captured.selected is None:
        raise ValueError("there are no proposals: the model is not a two-stage one")
    objectness, boxes, levels = chosen(view)
    ends = (float(objectness[0]), float(objectness[-1]))
    all_of_them, best = sheet_of(view.image, 2), sheet_of(view.image, 2)
    for box, level in zip(boxes, levels):
        dot(all_of_them.pixels, all_of_them.at((box[:2] + box[2:]) / 2), 5, level_color(int(level)))
    shown = range(min(NUM_BOXES, len(boxes)))
    for k in reversed(shown):
        color = share_color(float(objectness[k]), ends[1], ends[0])
        outline(best.pixels, best.at(boxes[k]), color, 2)
    counts = np.bincount(levels, minlength=len(view.shapes))
    said = ", ".join(f"{count} of level {level}" for level, count in enumerate(counts))
    panels = [
        Panel(f"the centres of all {len(boxes)}: {said}", all_of_them.pixels),
        Panel(f"the boxes of the {len(shown)} best", best.pixels),
    ]
    icons = level_icons(view)
    icons.append((color_bar(), f"score, from {ends[1]:.2f} to {ends[0]:.2f}"))
    return picture("The proposals of the encoder", panels, icons)


def chosen(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Returns:
        scores: (Q,) in [0, 1], descending.
        boxes: (Q, 4), (x1, y1, x2, y2) px.
        levels: (Q,) int, of the cells that propose them.
    """
    selected, outputs = view.captured.selected[view.index], view.captured.outputs
    if "interm_outputs" in outputs:  # of the selected alone, by class
        of_image = {key: x[view.index] for key, x in outputs["interm_outputs"].items()}
        scores = of_image["pred_logits"].float().max(-1).values
    else:
        of_image = {key: x[view.index, selected] for key, x in outputs["enc_outputs"].items()}
        scores = of_image["pred_logits"][:, OBJECTNESS_CHANNEL].float()
    boxes = box_cxcywh_to_xyxy(of_image["pred_boxes"].float())
    ends = np.cumsum([height * width for height, width in view.shapes])
    levels = np.searchsorted(ends, selected.cpu().numpy(), side="right")
    return scores.sigmoid().cpu().numpy(), view.to_pixels(boxes), levels
