"""From the outputs of the network to detections."""

from torch import Tensor

from .box_ops import box_cxcywh_to_xyxy
from .precision import at_least_float32
from .tracing import at_most


def sigmoid_topk(
    pred_logits: Tensor, pred_boxes: Tensor, num_detections: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The best (query, class) pairs of each image; no threshold and no NMS.

    One query may occur several times, with different classes. Boxes are not clipped.

    Args:
        pred_logits: (N, Q, K).
        pred_boxes: (N, Q, 4), (cx, cy, w, h) in [0, 1].
        num_detections: at most; Q * K where that is less.

    Returns:
        scores: (N, num_detections), descending.
        labels: (N, num_detections) int64.
        boxes: (N, num_detections, 4), (x0, y0, x1, y1) as fractions of the valid image.

    Raises:
        ValueError: when `num_detections` is less than 1.
    """
    _check(num_detections)
    num_classes = pred_logits.shape[2]
    probability = at_least_float32(pred_logits).sigmoid().flatten(1)  # (N, Q * K)
    # Differs from the official code: fewer pairs than detections are no error.
    scores, index = probability.topk(at_most(num_detections, probability.shape[1]), dim=1)
    return scores, index % num_classes, _boxes_of(pred_boxes, index // num_classes)


def softmax_best(
    pred_logits: Tensor, pred_boxes: Tensor, num_detections: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The best class of each query, as in DETR; no threshold and no NMS.

    The class of a query that finds no object, too, is the best of the others. Boxes are not
    clipped.

    Args:
        pred_logits: (N, Q, K + 1), the last of no object.
        pred_boxes: (N, Q, 4), (cx, cy, w, h) in [0, 1].
        num_detections: at most; Q where that is less.

    Returns:
        scores, labels, boxes: of :func:`sigmoid_topk`.

    Raises:
        ValueError: when `num_detections` is less than 1.
    """
    _check(num_detections)
    best = at_least_float32(pred_logits).softmax(-1)[..., :-1].max(-1)
    scores, query = best.values.topk(at_most(num_detections, best.values.shape[1]), dim=1)
    return scores, best.indices.gather(1, query), _boxes_of(pred_boxes, query)


def _check(num_detections: int) -> None:
    if num_detections < 1:
        raise ValueError(f"num_detections must be at least 1, got {num_detections}")


def _boxes_of(pred_boxes: Tensor, query: Tensor) -> Tensor:
    """(N, Q, 4) as (cx, cy, w, h), (N, D) -> (N, D, 4) as (x0, y0, x1, y1)."""
    boxes = box_cxcywh_to_xyxy(at_least_float32(pred_boxes))
    return boxes.gather(1, query[..., None].expand(-1, -1, 4))
