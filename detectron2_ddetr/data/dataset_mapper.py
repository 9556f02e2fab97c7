"""From a dataset dict to the input of the model: read, check, augment, convert the boxes."""

import contextlib
import logging
import math
import numbers
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config_rules import check_config
from ..errors import InputError
from ..toolbox import Boxes, BoxMode, CfgNode, Instances, T, configurable
from .augmentation import build_augmentation
from .image_files import NO_FILE_NAME, describe_image, read_image, size_fault

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _numpy_seeded_by(draw: tuple[int, ...] | None) -> Iterator[None]:
    """Inside, numpy's global generator depends on `draw` alone; after, it is as it was before."""
    if draw is None:
        yield
        return
    state = np.random.get_state()
    # The legacy global generator is the one that detectron2's augmentations draw from.
    np.random.seed(np.random.SeedSequence(draw).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)


class DeformableDETRDatasetMapper:
    """
    Maps a dataset dict to the input format of :class:`DeformableDETR`.

    The returned dict has "image", (3, H, W) uint8 in the channel order `image_format`, and the keys
    of the dataset dict ("file_name", "image_id", "height" and "width" in px before augmentation)
    without "annotations" and "draw". In training it also has "instances": an :class:`Instances` of
    size (H, W) with "gt_boxes", (T, 4) (x1, y1, x2, y2) in px of the augmented image, clipped to
    it, and "gt_classes", (T,) int64. Crowd regions and boxes without area are left out; an image
    without any box is kept.

    If the dataset dict has a key "draw", a tuple of non-negative ints, every random choice is a
    function of that tuple, so that a resumed training sees what an uninterrupted one would have.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        num_classes: int | None = None,
    ):
        """
        Args:
            is_train: whether to return "instances".
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", the channel order of "image".
            num_classes: of the model; a category_id beyond is refused. None for no limit.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.num_classes = num_classes
        mode = "training" if is_train else "inference"
        logger.info("Augmentations in %s: %s", mode, list(augmentations))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        check_config(cfg)
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        `dataset_dict` is in detectron2's standard format and is left unchanged.

        Raises:
            InputError: names the image, and what is wrong with its file or its annotations.
        """
        image = self._read_image(dataset_dict)
        sample = {k: v for k, v in dataset_dict.items() if k not in ("annotations", "draw")}
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])

        with _numpy_seeded_by(dataset_dict.get("draw")):
            sample["image"], transforms = self.augmented(image, describe_image(dataset_dict))
        if self.is_train:
            sample["instances"] = self._to_instances(
                dataset_dict, transforms, tuple(sample["image"].shape[1:])
            )
        return sample

    def augmented(self, image: np.ndarray, where: str) -> tuple[Tensor, T.TransformList]:
        """
        What becomes of the pixels of an image.

        Args:
            image: (H, W, 3) uint8 in the channel order `image_format`.
            where: what messages call it.

        Returns:
            (3, H', W') uint8, and what was done to it.

        Raises:
            InputError: if the augmentations give something else.
        """
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"{where}: the augmentations {self.augmentations} must give (height, width, 3) "
                f"uint8, got {image.shape} {image.dtype}; correct them"
            )
        return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")), transforms

    def _read_image(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        """(H, W, 3) uint8, checked against the size in the dataset dict."""
        where = describe_image(dataset_dict)
        if not dataset_dict.get("file_name"):
            raise InputError(f"{where}: {'; '.join(NO_FILE_NAME)}")
        # Differs from the official code: EXIF orientation is applied, because detectron2's
        # evaluation and visualisation apply it too. COCO's images carry none.
        image = read_image(dataset_dict["file_name"], self.image_format, where=where)
        height, width = image.shape[:2]
        said = (dataset_dict.get("width", width), dataset_dict.get("height", height))
        fault = size_fault(said, (width, height))
        if fault is not None:
            raise InputError(f"{where}: {'; '.join(fault)}")
        return image

    def _to_instances(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.TransformList,
        image_size: tuple[int, int],
    ) -> Instances:
        """
        Ground truth of an augmented image.

        Args:
            dataset_dict: its "annotations" have "bbox", "bbox_mode", "category_id" and maybe
                "iscrowd".
            transforms: what was done to the image.
            image_size: (height, width) after augmentation, px.
        """
        annotations = dataset_dict.get("annotations") or ()
        for annotation in annotations:
            fault = _annotation_fault(annotation, self.num_classes)
            if fault is not None:
                raise InputError(
                    f"{describe_image(dataset_dict)}: an annotation {fault}; correct it, or remove "
                    f"it: {reprlib.repr(annotation)}"
                )
        annotations = [a for a in annotations if not a.get("iscrowd", 0)]
        boxes = np.array(
            [
                BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
                for a in annotations
            ],
            dtype=np.float64,
        ).reshape(-1, 4)
        height, width = image_size
        boxes = transforms.apply_box(boxes).reshape(-1, 4)
        boxes = np.clip(boxes, 0, (width, height, width, height))
        # In single precision, as in the official code: what the crop's edge just touches is empty.
        boxes = torch.from_numpy(boxes).float()
        classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        # Thin slivers stay: only boxes without area are dropped.
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)

        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes[has_area])
        instances.gt_classes = classes[has_area]
        return instances


def _annotation_fault(annotation: dict[str, Any], num_classes: int | None) -> str | None:
    """What is wrong with an annotation that is to be learnt from."""
    if not isinstance(annotation, dict):
        return "must be a dict"
    if annotation.get("iscrowd", 0):
        return None
    for key in ("bbox", "bbox_mode", "category_id"):
        if key not in annotation:
            return f"must have a {key!r}"
    bbox, mode, category = (annotation[key] for key in ("bbox", "bbox_mode", "category_id"))
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return f"must have a bbox_mode of XYXY_ABS or XYWH_ABS, got {mode!r}"
    bbox = bbox.tolist() if isinstance(bbox, np.ndarray) else bbox
    if (
        not isinstance(bbox, (list, tuple))
        or len(bbox) != 4
        or not all(isinstance(v, numbers.Real) and math.isfinite(v) for v in bbox)
    ):
        return f"must have a bbox of 4 finite numbers, got {bbox!r}"
    x, y, *end = bbox
    if min(end) < 0 if mode == BoxMode.XYWH_ABS else (end[0] < x or end[1] < y):
        return f"must have a bbox of no negative width or height, got {bbox!r} ({mode!r})"
    whole = isinstance(category, numbers.Integral) and not isinstance(category, bool)
    if not whole or category < 0:
        return f"must have a category_id that is an integer from 0 on, got {category!r}"
    if num_classes is not None and category >= num_classes:
        return (
            f"must have a category_id below the number of classes ({num_classes}, "
            f"MODEL.DETR.NUM_CLASSES), got {category}"
        )
    return None
