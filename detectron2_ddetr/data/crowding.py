"""Images with more boxes than a model can find, said before they are trained or evaluated on."""

import logging
from collections.abc import Sequence

from ..toolbox import CfgNode

logger = logging.getLogger(__name__)


def warn_if_crowded(
    cfg: CfgNode, name: str, boxes_per_image: Sequence[int], *, is_train: bool
) -> None:
    """
    Logs one line if images of a data set have more boxes than the config lets a model find.

    Args:
        name: of the data set.
        boxes_per_image: number of boxes that are not crowd regions.
        is_train: whether it is trained on, where the number of detections plays no part.
    """
    limits = {"MODEL.DETR.NUM_QUERIES": cfg.MODEL.DETR.NUM_QUERIES}
    if not is_train:
        limits["TEST.DETECTIONS_PER_IMAGE"] = cfg.TEST.DETECTIONS_PER_IMAGE
    said = []
    for key, limit in limits.items():
        crowded = sum(boxes > limit for boxes in boxes_per_image)
        if crowded:
            said.append(f"{crowded} of {len(boxes_per_image)} images have more than {key} {limit}")
    if said:
        logger.warning(
            f"data set {name!r}: {' and '.join(said)} boxes (the most: {max(boxes_per_image)}); "
            "those beyond it cannot be found: set it higher"
        )
