"""Boxes as (cx, cy, w, h) and (x0, y0, x1, y1), their overlap, and the inverse of the sigmoid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) (cx, cy, w, h) -> (x0, y0, x1, y1), any unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) (x0, y0, x1, y1) -> (cx, cy, w, h), any unit."""
    lower, upper = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((lower + upper) / 2, upper - lower), dim=-1)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 0.0) -> Tensor:
    """
    Generalised IoU (https://arxiv.org/abs/1902.09630) of boxes that broadcast against each other.

    `generalized_box_iou(a, b)` compares a_i with b_i; `generalized_box_iou(a[:, None], b)` each
    with each. (torchvision has only the second, and a paired loss with an eps in the denominator
    that changes the value of small boxes in [0, 1].)

    Args:
        boxes1, boxes2: (..., 4), (x0, y0, x1, y1), any unit. Nothing is asserted: a box with
            NaN gives NaN, and with `eps` 0 so do two boxes that are one point.
        eps: added to both denominators, in the square of the unit. DAB-DETR and what comes from it
            have 1e-6 of the image, so that a box of 2x2 pixels of 640x480 has 0.93 with itself.

    Returns:
        (...), in [-1, 1].
    """
    # Coordinate by coordinate: of many pairs, twice as fast as (..., 2) corners.
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    overlap = _area(
        torch.maximum(left1, left2),
        torch.maximum(top1, top2),
        torch.minimum(right1, right2),
        torch.minimum(bottom1, bottom2),
    )
    union = _area(left1, top1, right1, bottom1) + _area(left2, top2, right2, bottom2) - overlap
    hull = _area(
        torch.minimum(left1, left2),
        torch.minimum(top1, top2),
        torch.maximum(right1, right2),
        torch.maximum(bottom1, bottom2),
    )
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def _area(left: Tensor, top: Tensor, right: Tensor, bottom: Tensor) -> Tensor:
    return (right - left).clamp(min=0) * (bottom - top).clamp(min=0)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """
    Logit of x in [0, 1], at most -log(eps) either way. The eps belongs to the model: others use
    1e-3. (`torch.logit` with an eps rounds 1 - eps first, which is 1e-3 off at 1 in float32.)
    """
    x = x.clamp(0, 1)
    return x.clamp(min=eps).log() - (1 - x).clamp(min=eps).log()


def shift_box(delta: Tensor, reference_points: Tensor, eps: float = 1e-5) -> Tensor:
    """
    The box that a head's output means, relative to a reference, in logit space (Sec. A.3).

    Args:
        delta: (..., 4), output of a box head.
        reference_points: (..., 2), (x, y), or (..., 4), (cx, cy, w, h), in [0, 1]. A point says
            nothing about the size, so `delta` alone gives it.
        eps: of :func:`inverse_sigmoid`.

    Returns:
        (..., 4), (cx, cy, w, h) in [0, 1].
    """
    logit = inverse_sigmoid(reference_points, eps)
    logit = F.pad(logit, (0, 4 - logit.shape[-1]))
    return (delta + logit).sigmoid()
