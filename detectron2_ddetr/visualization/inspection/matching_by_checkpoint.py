"""How the matching of one image settles over the checkpoints of a training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..drawing import class_color, class_name
from .ink import box_icon
from .matching import Matched, draw_pairs
from .panels import FONT, Panel, picture
from .view import View

RANKED = "Queries of a two-stage model are numbered by the score of what they start from."


class Checkpoint(NamedTuple):
    """
    Attributes:
        name: of its file.
        view: what its model makes of the image.
        matched: its matching with the ground truth.
    """

    name: str
    view: View
    matched: Matched


def matching_by_checkpoint(checkpoints: Sequence[Checkpoint]) -> np.ndarray:
    """
    A panel for each checkpoint, in their order: the ground truth, the boxes that are matched with
    it, what they cost, and how many of the ground truth boxes have another query than before.

    Args:
        checkpoints: of one image that has ground truth.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels, before = [], None
    for name, view, matched in checkpoints:
        said, before = caption(name, matched, before), matched
        labels = matched.target["labels"].tolist()
        names = [f"{t} {class_name(label, view.class_names)}" for t, label in enumerate(labels)]
        panels.append(Panel(said, draw_pairs(view, matched, names, len(checkpoints))))
    return picture(
        "The matching of queries and ground truth, by checkpoint",
        panels,
        [
            (box_icon(FONT, class_color(0), 3), "ground truth"),
            (box_icon(FONT, class_color(0), 1, edge=False), "its prediction, in the same colour"),
        ],
        [RANKED] if checkpoints[0].view.captured.selected is not None else [],
    )


def caption(name: str, matched: Matched, before: Matched | None) -> str:
    """What the pairs of a checkpoint cost, and how many of them another one had before."""
    said = f"{name}: the pairs cost {sum(matched.cost[p] for p in matched.pairs):.2f} together"
    if before is None:
        return said
    changed = len(set(matched.pairs) - set(before.pairs))
    return f"{said}; {changed} of {len(matched.pairs)} boxes have another query than before"
