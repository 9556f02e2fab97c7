"""The boxes that denoising queries start from, over the image."""

import copy

import numpy as np
import torch
from torch import Tensor

from ...modeling import Denoising, Draws, box_cxcywh_to_xyxy
from .ink import GREEN, LEVEL_COLORS, box_icon, outline
from .panels import FONT, Panel, picture, sheet_of
from .view import View

NOISED, NEGATIVE = LEVEL_COLORS[0], LEVEL_COLORS[2]


def noised_boxes(view: View, denoising: Denoising, target: dict[str, Tensor]) -> np.ndarray:
    """
    One group of denoising queries, with the random numbers of one seed: left what has to be
    restored, right, where there are any, the negatives; over the ground truth.

    Args:
        denoising: of the model.
        target: "labels" (T,), "boxes" (T, 4), (cx, cy, w, h) in [0, 1] of the image; T above 0.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    parts, num_groups = first_group(denoising, target)
    height, width = view.image.shape[:2]
    scale = np.array([width, height] * 2)
    panels = []
    for (name, boxes), color in zip(parts.items(), (NOISED, NEGATIVE)):
        sheet = sheet_of(view.image, len(parts))
        for box in box_cxcywh_to_xyxy(target["boxes"].cpu()).numpy() * scale:
            outline(sheet.pixels, sheet.at(box), GREEN, 3)
        for box in boxes.numpy() * scale:
            outline(sheet.pixels, sheet.at(box), color, 2)
        panels.append(Panel(name, sheet.pixels))
    icons = [(box_icon(FONT, GREEN, 3), "ground truth"), (box_icon(FONT, NOISED), "noised")]
    if len(parts) > 1:
        icons.append((box_icon(FONT, NEGATIVE), "noised further: to be called background"))
    title = f"The boxes of denoising queries: one of {num_groups} groups"
    return picture(title, panels, icons)


def first_group(denoising: Denoising, target: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """
    Returns:
        {what they are: (T, 4), (x0, y0, x1, y1) in [0, 1] of the image}, positives first; the
        number of groups.
    """
    denoising = copy.copy(denoising)  # the model draws on where it was
    device = target["boxes"].device
    denoising.draws = Draws(torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        _, references, group = denoising([target])
    boxes = box_cxcywh_to_xyxy(references[0, : group.size // group.blocks].cpu())
    # Corners of negatives may have crossed.
    boxes = torch.cat((boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])), 1)
    kinds = ["to be restored", "negatives"][: 1 + denoising.negatives]
    return dict(zip(kinds, boxes.chunk(len(kinds)))), group.blocks
