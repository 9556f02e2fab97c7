"""Which predictions hit a ground truth box, as COCO counts them."""

from typing import NamedTuple

import numpy as np
from pycocotools import mask

#: From this overlap on, a prediction of the right class is a hit.
IOU_THRESHOLD = 0.5


class Hits(NamedTuple):
    """What became of the boxes of one image."""

    #: (T,) bool: the prediction found a ground truth box that no better one had found.
    hit: np.ndarray
    #: (T,) bool: it lies on a crowd region of its class, so it is neither right nor wrong.
    on_crowd: np.ndarray
    #: (N,) bool: the ground truth box was found; never for a crowd region.
    found: np.ndarray


def match_to_ground_truth(
    pred_boxes: np.ndarray,
    pred_labels: np.ndarray,
    scores: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    is_crowd: np.ndarray,
) -> Hits:
    """
    In the order of their scores, each prediction takes the free box of its class that it overlaps
    most, if the IoU is at least :data:`IOU_THRESHOLD`. A crowd region is never used up.

    Args:
        pred_boxes, gt_boxes: (T, 4) and (N, 4), (x1, y1, x2, y2) px.
        pred_labels, gt_labels: (T,) and (N,) class numbers.
        scores: (T,).
        is_crowd: (N,) bool.
    """
    hit, on_crowd = np.zeros((2, len(pred_boxes)), dtype=bool)
    found = np.zeros(len(gt_boxes), dtype=bool)
    if not len(pred_boxes) or not len(gt_boxes):
        return Hits(hit, on_crowd, found)
    # Over a crowd region the intersection is divided by the area of the prediction alone.
    ious = mask.iou(_xywh(pred_boxes), _xywh(gt_boxes), is_crowd.astype(np.uint8))
    ious = np.where(pred_labels[:, None] == gt_labels, ious, -1.0)
    for index in np.argsort(-scores, kind="stable"):
        free = np.where(found | is_crowd, -1.0, ious[index])
        # COCO takes the last of several that overlap equally.
        best = len(free) - 1 - int(np.argmax(free[::-1]))
        if free[best] >= IOU_THRESHOLD:
            hit[index] = found[best] = True
        else:
            on_crowd[index] = (ious[index][is_crowd] >= IOU_THRESHOLD).any()
    return Hits(hit, on_crowd, found)


def _xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = np.array(boxes, dtype=np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
