"""From a dataset dict to the input of the model: read, check, augment, convert the boxes."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..toolbox import Boxes, BoxMode, CfgNode, Instances, T, configurable, detection_utils
from .augmentation import build_augmentation

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
        self, is_train: bool, *, augmentations: Sequence[T.Augmentation], image_format: str
    ):
        """
        Args:
            is_train: whether to return "instances".
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", the channel order of "image".
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        logger.info("Augmentations in %s: %s", mode, list(augmentations))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """`dataset_dict` is in detectron2's standard format and is left unchanged."""
        image = self._read_image(dataset_dict)
        sample = {k: v for k, v in dataset_dict.items() if k not in ("annotations", "draw")}
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])

        augmented = T.AugInput(image)
        with _numpy_seeded_by(dataset_dict.get("draw")):
            transforms = self.augmentations(augmented)
        image = augmented.image  # (H, W, 3)
        sample["image"] = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        if self.is_train:
            annotations = dataset_dict.get("annotations", ())
            sample["instances"] = _to_instances(annotations, transforms, image.shape[:2])
        return sample

    def _read_image(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        """(H, W, 3) uint8, checked against the size in the dataset dict."""
        name = dataset_dict["file_name"]
        where = f"image {dataset_dict.get('image_id')} ({name})"
        try:
            # Differs from the official code: EXIF orientation is applied, because detectron2's
            # evaluation and visualisation apply it too. COCO's images carry none.
            image = detection_utils.read_image(name, format=self.image_format)
        except FileNotFoundError as error:
            raise ValueError(
                f"{where}: the file does not exist; restore it, or correct the image root or the "
                "image's file_name in the json"
            ) from error
        # The exceptions by which PIL says that a file is truncated, corrupt or no image.
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{where}: the file cannot be decoded ({error}); replace it by an intact copy, or "
                "remove the image from the json"
            ) from error
        height, width = image.shape[:2]
        said = (dataset_dict.get("width", width), dataset_dict.get("height", height))
        if said != (width, height):
            raise ValueError(
                f"{where}: the json says width x height = {said[0]} x {said[1]} but the file has "
                f"{width} x {height} (EXIF orientation applied); correct the json or the file, "
                "else the boxes are wrong"
            )
        return image


def _to_instances(
    annotations: Sequence[dict[str, Any]], transforms: T.TransformList, image_size: tuple[int, int]
) -> Instances:
    """
    Ground truth of an augmented image.

    Args:
        annotations: with "bbox", "bbox_mode", "category_id" and maybe "iscrowd".
        transforms: what was done to the image.
        image_size: (height, width) after augmentation, px.
    """
    annotations = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = np.array(
        [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
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
