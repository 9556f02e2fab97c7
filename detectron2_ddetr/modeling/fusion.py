"""One set of detections from what a model finds in several views of an image."""

import torch
from torch import Tensor

#: From this IoU on, detections of two views are one object.
SAME = 0.55


def fuse_views(
    boxes: Tensor, scores: Tensor, labels: Tensor, views: Tensor, num_views: int
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Weighted box fusion (https://arxiv.org/abs/1910.13302), but for detections of one view, which
    are never compared with each other: a model that predicts a set says that they are different
    objects, however much they overlap. A suppression per class would take one of two that stand
    close, as detectron2's own merging does, and so change what even a single view says.

    From the best score on, a detection joins, among the objects of its class that its view has no
    part in yet, the one with the largest IoU, if that is above :data:`SAME`; else it is an object
    of its own. The box of an object is the mean of those in it, weighted by their scores; its score
    is the sum of theirs divided by the number of views, so that what one view alone sees counts
    less.

    Args:
        boxes: (n, 4), (x0, y0, x1, y1) px of the image, all views together.
        scores, labels: (n,).
        views: (n,) int64, which view each is of, from 0.
        num_views: those without a detection included.

    Returns:
        (m, 4), (m,), (m,): boxes, scores and labels of the objects, the best first. Of one view all
        that it has, unchanged.
    """
    scores, order = scores.sort(descending=True, stable=True)
    given, labels, views = boxes[order], labels[order], views[order]
    # In double precision the mean of one box is that box, to the bit.
    weights = scores.double().clamp(min=1e-300)
    weighted = given.double() * weights[:, None]
    means, sums, totals = given.double(), torch.zeros_like(weighted), torch.zeros_like(weights)
    joined = torch.zeros(len(scores), num_views, dtype=torch.bool, device=scores.device)
    objects = 0
    chosen = []
    for i, (label, view) in enumerate(zip(labels.tolist(), views.tolist())):
        if objects:
            overlap = _iou(means[:objects], given[i].double())
            others = (labels[chosen] != label) | joined[:objects, view]
            best = int(overlap.masked_fill(others, -1.0).argmax())
            same = not others[best] and overlap[best] > SAME
        else:
            same = False
        if not same:
            best, objects = objects, objects + 1
            chosen.append(i)
        joined[best, view] = True
        sums[best] += weighted[i]
        totals[best] += weights[i]
        means[best] = sums[best] / totals[best]
    totals = totals[:objects] / num_views
    totals, order = totals.sort(descending=True, stable=True)
    return means[order].to(boxes), totals.to(scores), labels[chosen][order]


def _iou(boxes: Tensor, box: Tensor) -> Tensor:
    """(n, 4), (4,) -> (n,)."""
    low = torch.maximum(boxes[:, :2], box[:2])
    shared = (torch.minimum(boxes[:, 2:], box[2:]) - low).clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)
