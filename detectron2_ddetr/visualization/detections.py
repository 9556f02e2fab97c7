"""A picture of the detections in an image."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..toolbox import Instances
from .choice import CROWDED
from .drawing import class_color, class_name, draw_boxes, style_of, text_lines
from .marks import legend

#: Smaller images are enlarged to this long side, px, so that text on them can be read.
MIN_SIDE = 640


def draw_instances(
    image: np.ndarray, instances: Instances, class_names: Sequence[str]
) -> np.ndarray:
    """
    Args:
        image: (H, W, 3) uint8 RGB.
        instances: in px of it; "pred_boxes", "scores", "pred_classes".
        class_names: see :func:`.text.readable_names`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    boxes, labels = instances.pred_boxes.tensor.numpy(), instances.pred_classes.tolist()
    return draw_boxes(image, boxes, labels, instances.scores.tolist(), class_names=class_names)


def picture_of_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], title: str
) -> np.ndarray:
    """
    :func:`draw_instances` under a title and what the colours mean.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    scale = MIN_SIDE / max(image.shape[:2])
    if scale > 1:
        height, width = (max(1, round(scale * side)) for side in image.shape[:2])
        image = cv2.resize(
            np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_CUBIC
        )
        instances = instances[:]  # their boxes are to stay
        boxes = type(instances.pred_boxes)(instances.pred_boxes.tensor.clone())
        boxes.scale(scale, scale)
        instances.pred_boxes = boxes
    drawn = draw_instances(image, instances, class_names)
    font = max(16, style_of(drawn.shape, CROWDED + 1).font)
    width = max(drawn.shape[1], 20 * font)
    labels = sorted(set(instances.pred_classes.tolist()))
    classes = [(class_name(label, class_names), class_color(label)) for label in labels]
    rows = [text_lines(title, width, font)]
    if classes:
        rows.append(legend(width, classes, [], font, marks=()))
    drawn = np.pad(drawn, ((0, 0), (0, width - drawn.shape[1]), (0, 0)), constant_values=255)
    return np.concatenate([*rows, drawn])
