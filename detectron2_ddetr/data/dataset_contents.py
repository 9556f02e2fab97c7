"""What the data sets of a config hold, looked through before anything is built."""

import logging
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog, comm
from .image_files import check_images

logger = logging.getLogger(__name__)


def check_contents(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """
    Checks the headers of all images that `cfg` would read, and warns of images with more boxes than
    the model can find. One process of each machine does it, for all of its machine.

    Args:
        eval_only: whether to leave out DATASETS.TRAIN.

    Raises:
        InputError: lists the faulty images of every data set.
    """
    if comm.get_local_rank() != 0:
        return
    faults: dict[str, str] = {}
    for names, is_train in ((cfg.DATASETS.TRAIN, True), (cfg.DATASETS.TEST, False)):
        for name in () if is_train and eval_only else names:
            dataset_dicts = DatasetCatalog.get(name)
            counts = [_num_boxes(dataset_dict) for dataset_dict in dataset_dicts]
            if is_train and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:  # they are never read
                dataset_dicts = [d for d, count in zip(dataset_dicts, counts) if count]
            _warn_if_crowded(cfg, name, counts, is_train=is_train)
            try:
                check_images(dataset_dicts, name)
            except InputError as error:
                faults[name] = str(error)
    if faults:
        raise InputError("\n".join(faults.values()))


def _num_boxes(dataset_dict: dict[str, Any]) -> int:
    """Crowd regions are not counted: nothing is to be found there."""
    return sum(not a.get("iscrowd", 0) for a in dataset_dict.get("annotations") or ())


def _warn_if_crowded(
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
