"""Pictures of predictions beside the ground truth, and what `ddetr visualize` draws."""

import logging
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch

from ..checkpoint.checkpointer import Checkpointer
from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..data.image_files import describe_image, read_image
from ..toolbox import (
    BoxMode,
    CfgNode,
    DatasetCatalog,
    Instances,
    MetadataCatalog,
    build_model,
)
from .curves import plot_training_curves
from .drawing import MARGIN, draw_boxes, text_line

logger = logging.getLogger(__name__)

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
    image = read_image(dataset_dict["file_name"], where=describe_image(dataset_dict))
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


def visualize_run(cfg: CfgNode, output: str, num_images: int, score_threshold: float) -> None:
    """
    Draws predictions.png with the last checkpoint, and curves.png if there are metrics.

    Args:
        cfg: of the run; its data sets are registered.
        output: folder of the pictures.
        num_images: of DATASETS.TEST[0].
        score_threshold: predictions below it are not drawn.
    """
    model = build_model(cfg).eval()
    Checkpointer(model, cfg.OUTPUT_DIR, needs_head=True).resume_or_load(cfg.MODEL.WEIGHTS)

    name = cfg.DATASETS.TEST[0]
    dataset_dicts = list(islice(DatasetCatalog.get(name), num_images))
    mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
    with torch.no_grad():
        # One at a time: padding changes the result a little.
        results = [model([mapper(d)])[0]["instances"].to("cpu") for d in dataset_dicts]
    path = os.path.join(output, "predictions.png")
    predictions_beside_ground_truth(
        zip(dataset_dicts, results),
        MetadataCatalog.get(name).thing_classes,
        path,
        score_threshold=score_threshold,
    )
    logger.info("Wrote %s", path)
    metrics_json = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
    if os.path.isfile(metrics_json):
        path = os.path.join(output, "curves.png")
        plot_training_curves(metrics_json, path)
        logger.info("Wrote %s", path)
    else:
        logger.warning("No %s, so no curves are drawn", metrics_json)
