"""For `supervision`: its trackers, zones, annotators and metrics take what it calls Detections."""

from collections.abc import Sequence

import numpy as np
import supervision

from ..toolbox import Instances


def to_detections(
    instances: Instances, class_names: Sequence[str] | None = None
) -> supervision.Detections:
    """
    ``to_detections(predictor("photo.jpg"), predictor.class_names)``

    Args:
        instances: of a model or of :class:`Predictor`, on any device.
        class_names: by class number; None if they are not known.

    Returns:
        "xyxy" (n, 4) float32 px, "confidence" (n,) float32, "class_id" (n,) int, and, where there
        are names, data["class_name"] (n,).
    """
    labels = instances.pred_classes.cpu().numpy().astype(int)
    names = {} if class_names is None else {"class_name": np.array(class_names, str)[labels]}
    return supervision.Detections(
        xyxy=instances.pred_boxes.tensor.cpu().numpy(),
        confidence=instances.scores.cpu().numpy(),
        class_id=labels,
        data=names,
    )
