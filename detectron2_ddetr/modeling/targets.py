"""What the targets of a batch must be, looked at only where no device has to be waited for."""

import torch
from torch import Tensor

_KEYS = ("labels", "boxes")
#: Boxes may exceed their image by so much, for whoever rounds to 16 bits.
_ROUNDING = 1e-2


def check_targets(
    outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], num_background_classes: int = 0
) -> None:
    """
    Args:
        outputs: "pred_logits" (N, Q, K), "pred_boxes" (N, Q, 4).
        targets: per image "labels" and "boxes", see :func:`target_fault`.
        num_background_classes: how many of the K, the last, no target can have.

    Raises:
        ValueError: names what does not fit, and the image that it belongs to.
    """
    missing = [key for key in ("pred_logits", "pred_boxes") if key not in outputs]
    if missing:
        raise ValueError(f"outputs have no {missing[0]!r}, they have {sorted(outputs)}")
    logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
    if logits.dim() != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            "pred_logits must be (N, Q, K) and pred_boxes (N, Q, 4), got "
            f"{tuple(logits.shape)} and {tuple(boxes.shape)}"
        )
    if not isinstance(targets, (list, tuple)):
        raise ValueError(f"targets must be a list of one dict per image, got {type(targets)}")
    if len(targets) != len(logits) or not targets:
        raise ValueError(
            f"targets must be one dict per image: {len(targets)} for {len(logits)} images"
        )
    for image, target in enumerate(targets):
        fault = target_fault(target, logits.shape[2] - num_background_classes)
        if not fault and {target[key].device for key in _KEYS} != {boxes.device}:
            fault = f"it must be on {boxes.device}, where the predictions are"
        if fault:
            raise ValueError(f"target of image {image} of the batch: {fault}")


def target_fault(target: dict[str, Tensor], num_classes: int) -> str:
    """
    What is wrong with the target of one image; "" if nothing is.

    Args:
        target: "labels" (T,) int64 in [0, K), "boxes" (T, 4), (cx, cy, w, h) in [0, 1]. The
            numbers are looked at on the CPU only: elsewhere it would take a wait for all the work
            of the device. Boxes without width or height are sound.
        num_classes: K.
    """
    labels, boxes = (target.get(k) if isinstance(target, dict) else None for k in _KEYS)
    if not isinstance(labels, Tensor) or not isinstance(boxes, Tensor):
        return "it must be a dict with tensors 'labels' and 'boxes'"
    if labels.dim() != 1 or boxes.shape != (len(labels), 4):
        return (
            "labels must be (T,) and boxes (T, 4), got "
            f"{tuple(labels.shape)} and {tuple(boxes.shape)}"
        )
    if labels.dtype not in (torch.int64, torch.int32):
        return f"labels must be int64, got {labels.dtype}"
    if labels.device.type != "cpu" or not len(labels):
        return ""
    lowest, highest = labels.aminmax()
    if lowest < 0 or highest >= num_classes:
        wrong = (lowest if lowest < 0 else highest).item()
        return f"label {wrong} is none of the {num_classes} classes, 0 to {num_classes - 1}"
    lowest, highest = boxes.aminmax()  # NaN if one of them is
    if not (lowest >= 0 and highest <= 1 + _ROUNDING):
        sound = ((boxes >= 0) & (boxes <= 1 + _ROUNDING)).all(1)
        number = int(sound.int().argmin())
        return (
            f"box {number} is {[round(x, 4) for x in boxes[number].tolist()]}, and must be "
            "(cx, cy, w, h) in [0, 1] of the image, without negative size"
        )
    return ""
