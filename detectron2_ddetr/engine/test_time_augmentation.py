"""Test-time augmentation: an image in several sizes, and mirrored, for one set of detections."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.augmentation import ResizeShortSide
from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..errors import InputError
from ..inputs import check_images, describe
from ..modeling.fusion import fuse_views
from ..toolbox import Boxes, CfgNode, Instances, T, configurable


class DetectorWithTTA(nn.Module):
    """
    A detector that looks at an image in all sizes of TEST.AUG.MIN_SIZES and, with TEST.AUG.FLIP,
    at the mirror image of each.

    Called like the model itself, as detectron2's `GeneralizedRCNNWithTTA`: with dicts that have
    "image", (3, H, W) uint8, of any size, the best that of the file, since it is resized here.
    Detections of the views become one set by :func:`.fusion.fuse_views`.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        resizes: Sequence[T.Augmentation],
        flip: bool = True,
        num_detections: int = 100,
    ):
        """
        ``DetectorWithTTA(cfg, model)`` takes the other arguments from a config.

        Args:
            model: list of dicts -> list of {"instances": Instances}.
            resizes: one for each size; each sees the image as it is given.
            flip: whether to look at the mirror images too.
            num_detections: at most this many per image.
        """
        super().__init__()
        self.model = model
        self.resizes = list(resizes)
        self.flips = (False, True) if flip else (False,)
        self.num_detections = num_detections
        self.train(model.training)  # an evaluation sets the mode back to what it was

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        node, rule = cfg.TEST.AUG, cfg.INPUT.RESIZE_RULE
        return {
            "model": model,
            "resizes": [ResizeShortSide((size,), node.MAX_SIZE, rule) for size in node.MIN_SIZES],
            "flip": node.FLIP,
            "num_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: one dict per image: "image", and "height" and "width" wanted for the
                detections, those of "image" by default.

        Returns:
            One {"instances": Instances} per image, as the model has them, the best first.

        Raises:
            InputError: see :func:`check_images`; also for an image that is not uint8.
        """
        check_images(batched_inputs, 3)
        for index, x in enumerate(batched_inputs):
            if x["image"].dtype != torch.uint8:
                raise InputError(
                    f"{describe(index, x)}: 'image' must be uint8 to be resized for test-time "
                    f"augmentation, got {x['image'].dtype}"
                )
        sized = [
            {**x, "height": x.get("height", h), "width": x.get("width", w)}
            for x, (_, h, w) in zip(batched_inputs, (x["image"].shape for x in batched_inputs))
        ]
        views = []
        for resize, flip in itertools.product(self.resizes, self.flips):
            outputs = self.model([{**x, "image": view_of(x["image"], resize, flip)} for x in sized])
            found = [output["instances"] for output in outputs]
            views.append([mirrored(x) for x in found] if flip else found)
        return [{"instances": self._fused(of_image)} for of_image in zip(*views)]

    def _fused(self, views: Sequence[Instances]) -> Instances:
        numbers = torch.arange(len(views)).repeat_interleave(torch.tensor([len(v) for v in views]))
        columns = [(v.pred_boxes.tensor.cpu(), v.scores.cpu(), v.pred_classes.cpu()) for v in views]
        fused = fuse_views(*map(torch.cat, zip(*columns)), numbers, len(views))
        boxes, scores, labels = (x[: self.num_detections].to(views[0].scores.device) for x in fused)
        result = Instances(views[0].image_size)
        result.pred_boxes, result.scores, result.pred_classes = Boxes(boxes), scores, labels
        return result


def view_of(image: Tensor, resize: T.Augmentation, flip: bool) -> Tensor:
    """(3, H, W) uint8 -> (3, H', W') uint8, resized as the mapper does, and mirrored if `flip`."""
    view = T.AugInput(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    resize(view)
    pixels = np.ascontiguousarray((view.image[:, ::-1] if flip else view.image).transpose(2, 0, 1))
    return torch.from_numpy(pixels)


def mirrored(instances: Instances) -> Instances:
    """The same detections in the mirror image."""
    x0, y0, x1, y1 = instances.pred_boxes.tensor.unbind(dim=1)
    width = instances.image_size[1]
    instances.pred_boxes = Boxes(torch.stack((width - x1, y0, width - x0, y1), dim=1))
    return instances


def for_testing(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """
    What evaluation, during training too, and prediction run: the model's form for inference, with
    test-time augmentation if TEST.AUG.ENABLED.

    Args:
        model: a :class:`SetDetector`, or one in several processes.

    Raises:
        InputError: see :func:`.inference_form.inference_form`.
    """
    detector = model.module if isinstance(model, DistributedDataParallel) else model
    detector = detector.for_inference(int8=cfg.TEST.INT8)
    return DetectorWithTTA(cfg, detector) if cfg.TEST.AUG.ENABLED else detector


def mapper_for_testing(cfg: CfgNode) -> DeformableDETRDatasetMapper:
    """What reads the images for :func:`for_testing`, which resizes them itself if it augments."""
    if not cfg.TEST.AUG.ENABLED:
        return DeformableDETRDatasetMapper(cfg, is_train=False)
    return DeformableDETRDatasetMapper(cfg, is_train=False, augmentations=[])
