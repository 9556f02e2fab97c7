"""AP of each decoder layer, with and without suppression of duplicates (DETR, Fig. 4)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ...engine.box_metrics import box_metrics, indexed, run_coco
from ..text import line_height, write
from .ink import DARK, Color, swatch
from .panels import FONT, Panel, picture

#: Boxes of one class that overlap by more are duplicates.
NMS_IOU = 0.7
KINDS = ("without NMS", f"with NMS at an IoU of {NMS_IOU:g}")
COLORS: tuple[Color, Color] = ((0, 114, 178), (230, 159, 0))
ROW, NAME, WIDTH = 22, 90, 640  # px


def ap_of_layers(
    model: nn.Module, samples: Iterable[dict], targets: Sequence[dict[str, Tensor]]
) -> np.ndarray:
    """
    Args:
        model: a :class:`SetDetector` in evaluation.
        samples: inputs of it, one image each.
        targets: "labels" (T,), "boxes" (T, 4), (cx, cy, w, h) in [0, 1], of each image.

    Returns:
        (layers, 2): AP in percent without and with NMS; NaN where there is no ground truth.
    """
    sizes: list[tuple[int, int]] = []
    found: list[list[list[list[dict]]]] = []  # by image, layer and kind
    with torch.no_grad():
        for number, sample in enumerate(samples, start=1):
            outputs = model.network_outputs(model.preprocess_image([sample]))
            sizes.append((sample["height"], sample["width"]))
            layers = [*outputs["aux_outputs"], outputs]
            found.append([_results(model.select_detections, layer, model.num_detections, number,
                                   sizes[-1]) for layer in layers])  # fmt: skip
    truth = indexed(_as_coco(targets, sizes, model.head.num_classes))
    values = np.full((len(found[0]), 2), np.nan)
    for layer in range(len(values)):
        for kind in (0, 1):
            results = [result for image in found for result in image[layer][kind]]
            metrics = box_metrics(run_coco(truth, results, model.num_detections), {})
            if (ap := metrics.summary["AP"]) is not None:
                values[layer, kind] = ap
    return values


def layer_ap(values: np.ndarray, num_images: int) -> np.ndarray:
    """
    A bar for each layer and kind.

    Args:
        values: of :func:`ap_of_layers`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    gap = ROW // 2
    canvas = np.full((len(values) * (2 * ROW + gap), WIDTH, 3), 255, dtype=np.uint8)
    largest = max(float(np.nanmax(values, initial=0.0)), 1e-12)
    middle = (ROW - line_height(FONT - 2)) // 2
    for layer, pair in enumerate(values):
        top = layer * (2 * ROW + gap)
        write(canvas, f"layer {layer}", 6, top + ROW // 2 + middle, FONT - 2, DARK)
        for kind, value in enumerate(pair):
            line = canvas[top + kind * ROW : top + (kind + 1) * ROW]
            length = round((WIDTH - NAME - 70) * float(np.nan_to_num(value)) / largest)
            line[2:-2, NAME : NAME + length] = COLORS[kind]
            said = "no ground truth" if np.isnan(value) else f"{value:.2f}"
            write(line, said, NAME + length + 6, middle, FONT - 2, DARK)
    icons = [(swatch(FONT, color), kind) for color, kind in zip(COLORS, KINDS)]
    title = f"AP of each layer of the decoder on {num_images} images"
    return picture(title, [Panel("COCO's box AP in percent", canvas)], icons)


def _results(
    select: Callable[..., tuple[Tensor, Tensor, Tensor]],
    layer: dict[str, Tensor],
    limit: int,
    image_id: int,
    size: tuple[int, int],
) -> list[list[dict]]:
    """In COCO's format, without and with NMS."""
    scores, labels, boxes = (x[0] for x in select(layer["pred_logits"], layer["pred_boxes"], limit))
    height, width = size
    boxes = boxes * boxes.new_tensor((width, height, width, height))
    everything = [
        {"image_id": image_id, "category_id": label, "score": score,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for score, label, (x1, y1, x2, y2) in zip(scores.tolist(), labels.tolist(), boxes.tolist())
    ]  # fmt: skip
    kept = batched_nms(boxes, scores, labels, NMS_IOU)
    return [everything, [everything[i] for i in kept.tolist()]]


def _as_coco(
    targets: Sequence[dict[str, Tensor]], sizes: Sequence[tuple[int, int]], num_classes: int
) -> dict[str, list[dict]]:
    """The targets of images 1, 2, ... as a data set of COCO."""
    annotations = []
    for number, (target, (height, width)) in enumerate(zip(targets, sizes), start=1):
        for label, (cx, cy, w, h) in zip(target["labels"].tolist(), target["boxes"].tolist()):
            w, h = w * width, h * height
            bbox = [cx * width - w / 2, cy * height - h / 2, w, h]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "area": w * h,
                                "category_id": label, "bbox": bbox, "iscrowd": 0})  # fmt: skip
    return {
        "images": [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "categories": [{"id": i, "name": str(i)} for i in range(num_classes)],
        "annotations": annotations,
    }
