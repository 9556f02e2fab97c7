"""Large images in tiles: where the tiles lie, and which of their detections are one object."""

import math

import torch
from torch import Tensor

#: (x0, y0, x1, y1) px, of the whole image
Window = tuple[int, int, int, int]

#: From this IoU on, detections of two windows are one object.
SAME = 0.5
#: From this share of its area on, what a border has cut belongs to the detection it lies in.
PART = 0.7
#: Unless its score is more than so many times that of the other, which may be no object at all.
FAR_BETTER = 3.0


def tile_windows(height: int, width: int, side: int, overlap: float) -> list[Window]:
    """
    Windows of one size that cover an image and lie as far from each other as they can.

    Args:
        height, width: of the image, px.
        side: of a window, px; where the image is shorter, that of the image.
        overlap: the share of a side that two neighbours have in common at least; from 0, below 1.

    Returns:
        Row by row.
    """
    columns, rows = (_starts(length, side, overlap) for length in (width, height))
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, int(side * (1 - overlap)))
    last = length - side
    number = math.ceil(last / step)
    return [round(last * i / number) for i in range(number + 1)]


def cut_by_window(boxes: Tensor, window: Window, height: int, width: int) -> Tensor:
    """
    Which boxes reach the border of a window where the image goes on, as cut objects do.

    Args:
        boxes: (n, 4), (x0, y0, x1, y1) in px of the image.
        height, width: of the image.

    Returns:
        (n,) bool.
    """
    x0, y0, x1, y1 = window
    # A box is not exact to the pixel.
    near = max(2.0, 0.01 * max(x1 - x0, y1 - y0))
    low = boxes.new_tensor([x0 + near if x0 > 0 else -math.inf, y0 + near if y0 > 0 else -math.inf])
    high = boxes.new_tensor(
        [x1 - near if x1 < width else math.inf, y1 - near if y1 < height else math.inf]
    )
    return ((boxes[:, :2] < low) | (boxes[:, 2:] > high)).any(dim=1)


def one_of_each(
    boxes: Tensor, scores: Tensor, labels: Tensor, windows: Tensor, cut: Tensor
) -> Tensor:
    """
    Leaves one detection of each object that several windows show.

    Detections of one window are never compared with each other: the model says that they are
    different objects. A detection stands, among those of its class, for the one of each other
    window that is most like it, with an IoU of :data:`SAME`, and for all that a border has cut and
    that lie in it with :data:`PART` of their area. What is not cut goes before what is, and then
    the better score.

    Args:
        boxes: (n, 4), (x0, y0, x1, y1) px.
        scores, labels: (n,).
        windows: (n,) int64, which window each is of.
        cut: (n,) bool, see :func:`cut_by_window`.

    Returns:
        Indices of those that are left, best score first.
    """
    order = sorted(range(len(scores)), key=lambda i: (bool(cut[i]), -float(scores[i])))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    left = torch.ones(len(scores), dtype=torch.bool)
    kept = []
    for i in order:
        if not left[i]:
            continue
        kept.append(i)
        left[i] = False
        low = torch.maximum(boxes[:, :2], boxes[i, :2])
        shared = (torch.minimum(boxes[:, 2:], boxes[i, 2:]) - low).clamp(min=0).prod(dim=1)
        others = left & (labels == labels[i]) & (windows != windows[i])
        others &= (shared > 0) & (scores <= FAR_BETTER * scores[i])
        parts = cut & (shared >= PART * areas)
        iou = shared / (areas + areas[i] - shared)
        alike = (others & ~parts & (iou >= SAME)).nonzero()[:, 0]
        left &= ~(others & parts)
        seen = set()
        for j in alike[iou[alike].argsort(descending=True)].tolist():
            if int(windows[j]) not in seen:
                seen.add(int(windows[j]))
                left[j] = False
    index = torch.tensor(kept, dtype=torch.int64)
    return index[scores[index].argsort(descending=True, stable=True)]
