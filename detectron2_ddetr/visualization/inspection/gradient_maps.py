"""Which pixels the numbers of a prediction depend on (Deformable DETR, Fig. 5)."""

import cv2
import numpy as np
import torch

from ...toolbox import ImageList
from .ink import GREEN, box_icon, outline
from .panels import FONT, Panel, color_bar, heat, picture, sheet_of
from .view import View

#: Side of the square that norms are averaged over, px of the input; the raw ones are mostly noise.
AVERAGED = 9
NUMBERS = ("x of the centre", "y of the centre", "width", "height", "class score")


def gradient_maps(view: View, query: int, norms: np.ndarray) -> np.ndarray:
    """
    Args:
        query: of the decoder.
        norms: of :func:`gradient_norms`.

    Returns:
        (H, W, 3) uint8 RGB: a panel for each number.
    """
    layer = view.captured.num_layers("decoder") - 1
    box = view.boxes(layer)[query]
    plain = sheet_of(view.image, 2)
    outline(plain.pixels, plain.at(box), GREEN, 2)
    panels = [Panel("the image", plain.pixels)]
    for name, values in zip(NUMBERS, norms):
        sheet = sheet_of(view.image, 2)
        sheet = sheet._replace(pixels=heat(sheet.pixels, cv2.blur(values, (AVERAGED, AVERAGED))))
        outline(sheet.pixels, sheet.at(box), GREEN, 2)
        inside = 100 * share_inside(values, box / np.tile(view.image.shape[1::-1], 2))
        panels.append(Panel(f"{name}: {inside:.0f} % inside the box", sheet.pixels))
    said = view.say(view.detection_of(query, layer))
    icons = [
        (
            color_bar(),
            f"norm of the gradient, a mean of {AVERAGED} x {AVERAGED} px, from 0 to the largest",
        )
    ]
    icons.append((box_icon(FONT, GREEN), "predicted box"))
    return picture(f"Which pixels query {query} depends on: {said}", panels, icons)


def gradient_norms(
    model: torch.nn.Module, batched_inputs: list[dict], query: int, index: int = 0
) -> np.ndarray:
    """
    As training sees it: where references are detached, as between refining layers, what the pixels
    do to them is not in it.

    Args:
        model: a :class:`SetDetector` in evaluation.
        batched_inputs: of a forward pass.
        query: of its decoder.
        index: of the image in the batch.

    Returns:
        (5, h, w), of the input image without padding: for cx, cy, w, h, in [0, 1] of the image, and
        the score of the best class, the norm over the channels of the gradient by each pixel.
    """
    padded = model.preprocess_image(batched_inputs)
    pixels = padded.tensor.detach().requires_grad_()
    height, width = (int(side) for side in padded.image_sizes[index])
    outputs = model.network_outputs(ImageList(pixels, padded.image_sizes))
    score = model.head.class_probability(outputs["pred_logits"][index, query]).max()
    numbers = [*outputs["pred_boxes"][index, query], score]
    gradients = (torch.autograd.grad(number, pixels, retain_graph=True)[0] for number in numbers)
    norms = [gradient[index, :, :height, :width].float().norm(dim=0) for gradient in gradients]
    return torch.stack(norms).cpu().numpy()


def share_inside(values: np.ndarray, box: np.ndarray) -> float:
    """
    Args:
        values: (h, w), at least 0.
        box: (x1, y1, x2, y2) in [0, 1] of the map.

    Returns:
        How much of their sum lies inside the box.
    """
    height, width = values.shape
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    across = (x >= box[0]) & (x <= box[2])
    down = (y >= box[1]) & (y <= box[3])
    return float(values[np.ix_(down, across)].sum() / max(float(values.sum()), 1e-12))
