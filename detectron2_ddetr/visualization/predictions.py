"""
Pictures of predictions beside the ground truth.

``python -m detectron2_ddetr.visualization.predictions --config-file X`` draws them for a trained
model, and the curves of its training.
"""

import argparse
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch

from ..checkpoint.checkpointer import Checkpointer
from ..config import load_config
from ..data.coco_json import add_dataset_argument, check_datasets, register_coco_json
from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..toolbox import (
    BoxMode,
    DatasetCatalog,
    Instances,
    MetadataCatalog,
    build_model,
    detection_utils,
    setup_logger,
)
from .curves import plot_training_curves
from .drawing import MARGIN, draw_boxes, text_line

logger = logging.getLogger("detectron2_ddetr.visualization.predictions")  # also as __main__

PANEL_SIDE = 800  # long side of one picture of the mosaic, px


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
    title = text_line(os.path.basename(dataset_dict["file_name"]), row.shape[1], 16.0)
    bottom = np.full((MARGIN, row.shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([title, row, bottom])


def _captioned(panel: np.ndarray, text: str) -> np.ndarray:
    """`panel` under a line of text."""
    return np.concatenate([text_line(text, panel.shape[1], 12.0, left=0), panel])


def _parse_args(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m detectron2_ddetr.visualization.predictions",
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
