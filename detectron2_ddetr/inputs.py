"""What a model is given: one dict per image, looked at before anything is computed."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, NonFiniteError
from .modeling.targets import target_fault
from .toolbox import Boxes, Instances


def check_images(batched_inputs: list[dict[str, Any]], num_channels: int) -> None:
    """
    Args:
        batched_inputs: "image" of each, (C, h, w); "height" and "width" where it has them. Whether
            pixels of floating point are finite is looked at on the CPU only.
        num_channels: C.

    Raises:
        InputError: names the image and what is wrong with it.
    """
    if not isinstance(batched_inputs, (list, tuple)) or not batched_inputs:
        raise InputError(
            "the input must be a list of one dict per image, not empty, got "
            f"{'an empty one' if batched_inputs == [] else type(batched_inputs)}"
        )
    for number, sample in enumerate(batched_inputs):
        if not isinstance(sample, dict) or not isinstance(sample.get("image"), Tensor):
            raise InputError(f"{describe(number, sample)}: it must be a dict with a tensor 'image'")
        image = sample["image"]
        if image.dim() != 3 or len(image) != num_channels or 0 in image.shape:
            raise InputError(
                f"{describe(number, sample)}: 'image' must be ({num_channels}, height, width), got "
                f"{tuple(image.shape)}"
            )
        if image.is_floating_point() and image.device.type == "cpu":
            if not torch.stack(image.aminmax()).isfinite().all():
                raise InputError(f"{describe(number, sample)}: 'image' has NaN or infinite pixels")
        for key in ("height", "width"):
            size = sample.get(key, 1)
            if not isinstance(size, (Real, Tensor)) or not size > 0:
                raise InputError(
                    f"{describe(number, sample)}: {key!r}, the size wanted for the detections, "
                    f"must be a positive number, got {size!r}"
                )


def check_instances(batched_inputs: list[dict[str, Any]]) -> None:
    """
    Args:
        batched_inputs: that :func:`check_images` finds no fault in.

    Raises:
        InputError: names the image whose "instances" are not there, or not of it.
    """
    for number, sample in enumerate(batched_inputs):
        instances = sample.get("instances")
        if not isinstance(instances, Instances):
            raise InputError(
                f"{describe(number, sample)}: training needs 'instances' with gt_boxes and "
                "gt_classes, which a mapper makes with is_train True; .eval() is for detections"
            )
        fields, size = instances.get_fields(), tuple(sample["image"].shape[1:])
        if not isinstance(fields.get("gt_boxes"), Boxes) or "gt_classes" not in fields:
            raise InputError(
                f"{describe(number, sample)}: 'instances' must have gt_boxes, a Boxes, and "
                f"gt_classes, they have {sorted(fields)}"
            )
        if tuple(instances.image_size) != size:
            raise InputError(
                f"{describe(number, sample)}: 'instances' are of an image of (height, width) "
                f"{tuple(instances.image_size)}, but 'image' has {size}: both must be augmented "
                "alike"
            )


def check_ground_truth(
    batched_inputs: list[dict[str, Any]], targets: list[dict[str, Tensor]], num_classes: int
) -> None:
    """
    Args:
        batched_inputs: that :func:`check_instances` finds no fault in.
        targets: what was made of them, see :func:`target_fault`.
        num_classes: of the model.

    Raises:
        InputError: names the image, and the box or class that is wrong.
    """
    for number, (sample, target) in enumerate(zip(batched_inputs, targets)):
        if fault := target_fault(target, num_classes):
            height, width = sample["image"].shape[1:]
            raise InputError(
                f"{describe(number, sample)}: {fault}. Made of gt_classes, numbers below "
                "MODEL.DETR.NUM_CLASSES, and gt_boxes, (x0, y0, x1, y1) in pixels of 'image', "
                f"{width} wide and {height} high"
            )


def check_detections(batched_inputs: list[dict[str, Any]], results: list[Instances]) -> None:
    """
    Raises:
        NonFiniteError: names the image of whose detections not all numbers are finite.
    """
    for number, (sample, result) in enumerate(zip(batched_inputs, results)):
        if not (result.pred_boxes.tensor.isfinite().all() and result.scores.isfinite().all()):
            raise NonFiniteError(
                f"{describe(number, sample)}: its detections are NaN or infinite, so the weights "
                "of the model are, or its arithmetic overflows: take an earlier checkpoint, or "
                "compute in float32"
            )


def describe(number: int, sample: Any) -> str:
    """What messages call an image of a batch."""
    name = sample.get("file_name") if isinstance(sample, dict) else None
    return f"image {number} of the batch" + (f" ({name})" if name else "")
