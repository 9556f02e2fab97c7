"""
Pictures of predictions beside the ground truth.

``python -m detectron2_ddetr.visualize --config-file X`` draws them for a trained model, and the
curves of its training.
"""

import argparse
import colorsys
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch

from .checkpoint import Checkpointer
from .coco_json import add_dataset_argument, check_datasets, register_coco_json
from .config import load_config
from .dataset_mapper import DeformableDETRDatasetMapper
from .toolbox import (
    BoxMode,
    DatasetCatalog,
    Instances,
    MetadataCatalog,
    build_model,
    detection_utils,
    setup_logger,
)
from .training_curves import plot_training_curves

logger = logging.getLogger("detectron2_ddetr.visualize")  # also as __main__

PANEL_SIDE = 800  # long side of one picture of the mosaic, px
MARGIN = 14  # px between the panels
FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_color(label: int) -> tuple[int, int, int]:
    """(r, g, b), 0-255; neighbouring class numbers get hues that are far apart."""
    # Steps of the golden ratio never come close to an earlier hue.
    hue = (0.02 + 0.618034 * label) % 1.0
    value = 0.95 if label % 2 == 0 else 0.8
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, value))


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """
    Draws boxes with their class and score.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        boxes: (T, 4) (x1, y1, x2, y2) in px of `image`.
        labels: (T,) class numbers, which choose the colours.
        scores: (T,) in [0, 1], or None to leave them out.
        class_names: written in place of the numbers.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    canvas = np.array(image, order="C")
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    height, width = canvas.shape[:2]
    # A crowded image gets thinner lines and smaller text, down to what can still be read.
    crowded = len(boxes) > 12
    thickness = max(1, round(max(height, width) / 400))
    edge = 0 if crowded else 1
    # Large boxes first, so that small ones inside them stay visible.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind="stable")
    for index in order:
        _draw_rectangle(canvas, boxes[index], class_color(int(labels[index])), thickness, edge)
    taken: list[tuple[int, int, int, int]] = []
    font_px = max(9.0, max(height, width) / (68 if crowded else 55))
    for index in order:
        label = int(labels[index])
        text = str(label) if class_names is None else class_names[label]
        if scores is not None:
            text += f" {float(scores[index]):.2f}"
        taken.append(_draw_tag(canvas, text, boxes[index], class_color(label), font_px, taken))
    return canvas


def _draw_rectangle(
    canvas: np.ndarray, box: np.ndarray, color: tuple[int, int, int], thickness: int, edge: int
) -> None:
    """Outlines `box`, (x1, y1, x2, y2) px, between dark edges that show on any background."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.round(np.clip(box, 0, (width - 1, height - 1) * 2)).astype(int).tolist()
    if edge > 0:
        dark = tuple(v // 4 for v in color)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), dark, thickness + 2 * edge)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)


def _draw_tag(
    canvas: np.ndarray,
    text: str,
    box: np.ndarray,
    color: tuple[int, int, int],
    font_px: float,
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Writes `text` by `box` where it hides no other tag; returns where, (x1, y1, x2, y2) px."""
    scale = font_px / 21.0  # the capitals of this font are 21 px high at scale 1
    weight = max(1, round(scale * 1.6))
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, scale, weight)
    pad = max(2, round(font_px / 4))
    size = np.array([text_width + 2 * pad, text_height + 2 * pad])
    height, width = canvas.shape[:2]

    x1, y1, x2, y2 = box
    tag_width, tag_height = size.tolist()
    # In order of preference: above and below the box, inside it, and at last one line away from
    # it; left, right, in between.
    lefts = [x1, x2 - tag_width, (x1 + x2 - tag_width) / 2]
    tops = [y1 - tag_height, y2, y1, y2 - tag_height, (y1 + y2 - tag_height) / 2]
    tops += [y1 - 2 * tag_height, y2 + tag_height]
    corners = np.array([(left, top) for top in tops for left in lefts])
    upper = np.maximum(np.array([width, height]) - size, 0)
    # A corner that had to be moved into the image lies elsewhere then: still a valid place.
    corners = np.clip(np.round(corners), 0, upper).astype(int)
    costs = [_overlap((*corner, *(corner + size)), taken) for corner in corners]
    left, top = corners[int(np.argmin(costs))].tolist()

    patch = canvas[top : top + tag_height, left : left + tag_width]
    patch[:] = (0.15 * patch + 0.85 * np.array(color)).astype(np.uint8)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    origin = (left + pad, top + pad + text_height)
    cv2.putText(canvas, text, origin, FONT, scale, ink, weight, cv2.LINE_AA)
    return left, top, left + tag_width, top + tag_height


def _overlap(tag: tuple[int, int, int, int], taken: Sequence[tuple[int, int, int, int]]) -> float:
    """Area in px^2 that `tag` shares with the `taken` ones; all (x1, y1, x2, y2)."""
    if not taken:
        return 0.0
    others = np.array(taken)
    low = np.maximum(others[:, :2], tag[:2])
    high = np.minimum(others[:, 2:], tag[2:])
    return float(np.clip(high - low, 0, None).prod(axis=1).sum())


def predictions_beside_ground_truth(
    images_with_results: Iterable[tuple[dict[str, Any], Instances]],
    class_names: Sequence[str],
    path: str,
    *,
    score_threshold: float,
) -> None:
    """
    Writes a PNG with one row per image: the ground truth left, the predictions right.

    Args:
        images_with_results: pairs of a dataset dict ("file_name", "annotations") and the
            predictions for it: "pred_boxes" (x1, y1, x2, y2) in px of the original image, "scores",
            "pred_classes". Crowd regions are not drawn.
        class_names: by class number.
        path: of the PNG.
        score_threshold: predictions below it are not drawn.
    """
    rows = [
        _mosaic_row(dataset_dict, instances, class_names, score_threshold)
        for dataset_dict, instances in images_with_results
    ]
    if not rows:
        raise ValueError(f"no image to draw into {path}; pass at least one")
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    mosaic = np.concatenate(rows)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if not cv2.imwrite(path, cv2.cvtColor(mosaic, cv2.COLOR_RGB2BGR)):
        raise ValueError(f"{path}: cannot be written; check the folder and the ending (.png)")


def _mosaic_row(
    dataset_dict: dict[str, Any],
    instances: Instances,
    class_names: Sequence[str],
    score_threshold: float,
) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a title line over two captioned panels."""
    image = detection_utils.read_image(dataset_dict["file_name"], format="RGB")
    scale = PANEL_SIDE / max(image.shape[:2])
    # Enlarged before drawing, so that the text of a small image is as sharp as that of a large one.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    shape = (round(image.shape[1] * scale), round(image.shape[0] * scale))  # width first
    image = cv2.resize(np.ascontiguousarray(image), shape, interpolation=interpolation)

    annotations = [a for a in dataset_dict.get("annotations", ()) if not a.get("iscrowd", 0)]
    gt_boxes = np.array(
        [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    ).reshape(-1, 4)
    gt_labels = [a["category_id"] for a in annotations]
    left = draw_boxes(image, gt_boxes * scale, gt_labels, class_names=class_names)

    scores = instances.scores.detach().cpu().numpy()
    keep = scores >= score_threshold
    pred_boxes = instances.pred_boxes.tensor.detach().cpu().numpy()[keep]
    pred_labels = instances.pred_classes.cpu().numpy()[keep]
    right = draw_boxes(
        image, pred_boxes * scale, pred_labels, scores[keep], class_names=class_names
    )

    panels = [
        _captioned(left, f"ground truth ({len(gt_labels)})"),
        _captioned(right, f"predictions, score >= {score_threshold:g} ({len(pred_labels)})"),
    ]
    gap = np.full((panels[0].shape[0], MARGIN, 3), 255, dtype=np.uint8)
    row = np.concatenate([gap, panels[0], gap, panels[1], gap], axis=1)
    title = _text_line(os.path.basename(dataset_dict["file_name"]), row.shape[1], 16.0)
    bottom = np.full((MARGIN, row.shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([title, row, bottom])


def _captioned(panel: np.ndarray, text: str) -> np.ndarray:
    """`panel` under a line of text."""
    return np.concatenate([_text_line(text, panel.shape[1], 12.0, left=0), panel])


def _text_line(text: str, width: int, font_px: float, left: int = MARGIN) -> np.ndarray:
    """(H, `width`, 3) uint8 white line with dark text that shrinks to fit."""
    scale = font_px / 21.0
    weight = 2 if font_px > 14 else 1
    text_width = cv2.getTextSize(text, FONT, scale, weight)[0][0]
    scale *= min(1.0, (width - left) / max(text_width, 1))
    line = np.full((round(font_px * 2.2), width, 3), 255, dtype=np.uint8)
    origin = (left, round(font_px * 1.6))
    cv2.putText(line, text, origin, FONT, scale, (40, 40, 40), weight, cv2.LINE_AA)
    return line


def _parse_args(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m detectron2_ddetr.visualize",
        description="Draws predictions beside the ground truth, and the curves of the training.",
    )
    parser.add_argument("--config-file", required=True)
    add_dataset_argument(parser)
    parser.add_argument("--num-images", type=int, default=4, help="of DATASETS.TEST[0]")
    parser.add_argument("--score-threshold", type=float, default=0.4)
    parser.add_argument("--output", help="folder of the pictures; default: OUTPUT_DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    """Draws predictions.png with the last checkpoint, and curves.png if there are metrics."""
    options = _parse_args(args)
    setup_logger(name=__package__)
    cfg = load_config(options.config_file, options.opts)
    for dataset in options.dataset:
        register_coco_json(*dataset)
    check_datasets(cfg, eval_only=True)
    output = options.output or cfg.OUTPUT_DIR
    model = build_model(cfg).eval()
    Checkpointer(model, cfg.OUTPUT_DIR, needs_head=True).resume_or_load(cfg.MODEL.WEIGHTS)

    name = cfg.DATASETS.TEST[0]
    dataset_dicts = list(islice(DatasetCatalog.get(name), options.num_images))
    mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
    with torch.no_grad():
        # One at a time: padding changes the result a little.
        results = [model([mapper(d)])[0]["instances"].to("cpu") for d in dataset_dicts]
    path = os.path.join(output, "predictions.png")
    predictions_beside_ground_truth(
        zip(dataset_dicts, results),
        MetadataCatalog.get(name).thing_classes,
        path,
        score_threshold=options.score_threshold,
    )
    logger.info("Wrote %s", path)
    metrics_json = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
    if os.path.isfile(metrics_json):
        path = os.path.join(output, "curves.png")
        plot_training_curves(metrics_json, path)
        logger.info("Wrote %s", path)
    else:
        logger.warning("No %s, so no curves are drawn", metrics_json)


if __name__ == "__main__":
    main()
