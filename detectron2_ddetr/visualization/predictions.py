"""Pictures of predictions beside the ground truth, and what `ddetr visualize` draws."""

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.image_files import describe_image, read_image
from ..engine.trained_model import require_weights
from ..errors import InputError
from ..predictor import Predictor
from ..toolbox import BoxMode, CfgNode, DatasetCatalog, Instances, MetadataCatalog
from .choice import choose_images
from .confusion import confusion_of_run
from .curves import plot_training_curves
from .drawing import (
    MARGIN,
    class_color,
    class_name,
    draw_boxes,
    resized,
    style_of,
    text_lines,
    write_picture,
)
from .hits import match_to_ground_truth
from .marks import Mark, legend
from .text import readable, readable_names

logger = logging.getLogger(__name__)

PANEL_SIDE = 800  # long side of one picture of the mosaic, px
FONT = 16  # of captions, px


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
            "pred_classes". Crowd regions are not drawn. Without "annotations", nothing is marked
            as right or wrong.
        class_names: by class number.
        path: of the PNG.
        score_threshold: predictions below it are not drawn.
    """
    class_names = readable_names(tuple(class_names))
    comparisons = [_compare(d, instances, score_threshold) for d, instances in images_with_results]
    if not comparisons:
        raise InputError(f"no image to draw into {path}; pass at least one")
    rows = [_mosaic_row(c, class_names, score_threshold) for c in comparisons]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    labels = sorted({int(n) for c in comparisons for n in (*c.gt_labels, *c.pred_labels)})
    classes = [(class_name(label, class_names), class_color(label)) for label in labels]
    on_crowd = any(c.matched and None in c.pred_marks for c in comparisons)
    notes = ["without a sign: on a crowd region, which does not count"] if on_crowd else []
    write_picture(np.concatenate([legend(width, classes, notes, FONT), *rows]), path)


class _Comparison(NamedTuple):
    """One image's boxes, (n, 4) (x1, y1, x2, y2) px, and what became of them."""

    file_name: str
    #: The image, in an error.
    where: str
    matched: bool
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    gt_marks: list[Mark | None]
    pred_boxes: np.ndarray
    pred_labels: np.ndarray
    pred_marks: list[Mark | None]
    scores: np.ndarray
    #: Of all predictions, also those below the threshold; None if there are none.
    best_score: float | None


def _compare(
    dataset_dict: dict[str, Any], instances: Instances, score_threshold: float
) -> _Comparison:
    annotations = dataset_dict.get("annotations", ())
    is_crowd = np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)
    gt_boxes = np.array(
        [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
        dtype=np.float64,
    ).reshape(-1, 4)
    gt_labels = np.array([a["category_id"] for a in annotations], dtype=np.int64)

    all_scores = instances.scores.detach().float().cpu().numpy()
    keep = all_scores >= score_threshold
    pred_boxes = instances.pred_boxes.tensor.detach().float().cpu().numpy()[keep]
    pred_labels = instances.pred_classes.cpu().numpy()[keep]
    scores = all_scores[keep]
    matched = "annotations" in dataset_dict
    if matched:
        hits = match_to_ground_truth(pred_boxes, pred_labels, scores, gt_boxes, gt_labels, is_crowd)
        gt_marks = [Mark.HIT if found else Mark.MISSED for found in hits.found[~is_crowd]]
        pred_marks = [
            Mark.HIT if hit else None if crowd else Mark.FALSE_ALARM
            for hit, crowd in zip(hits.hit, hits.on_crowd)
        ]
    else:
        gt_marks, pred_marks = [], [None] * len(scores)
    return _Comparison(
        file_name=dataset_dict["file_name"],
        where=describe_image(dataset_dict),
        matched=matched,
        gt_boxes=gt_boxes[~is_crowd],
        gt_labels=gt_labels[~is_crowd],
        gt_marks=gt_marks,
        pred_boxes=pred_boxes,
        pred_labels=pred_labels,
        pred_marks=pred_marks,
        scores=scores,
        best_score=float(all_scores.max()) if len(all_scores) else None,
    )


def _captions(comparison: _Comparison, score_threshold: float) -> tuple[str, str]:
    """What stands above the ground truth, and above the predictions."""
    c = comparison
    truth, predicted = str(len(c.gt_marks)), str(len(c.scores))
    if not c.matched:
        truth = "none is given"
    elif c.gt_marks:
        truth += f": {c.gt_marks.count(Mark.MISSED)} missed"
    if len(c.scores) == 0:
        best = "nothing is predicted" if c.best_score is None else f"the best is {c.best_score:.2g}"
        predicted = f"none; {best}"
    elif c.matched:
        predicted += f": {c.pred_marks.count(Mark.HIT)} hit, "
        predicted += f"{c.pred_marks.count(Mark.FALSE_ALARM)} false"
    return f"ground truth ({truth})", f"predictions, score >= {score_threshold:g} ({predicted})"


def _mosaic_row(
    comparison: _Comparison, class_names: Sequence[str], score_threshold: float
) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a title line over two captioned panels."""
    c = comparison
    image = read_image(c.file_name, where=c.where)
    image, scale = resized(image, PANEL_SIDE)

    # Both in the style of the more crowded one: a difference would look like a meaning.
    style = style_of(image.shape, max(len(c.gt_labels), len(c.pred_labels)))
    options = {"class_names": class_names, "style": style}
    truth = draw_boxes(image, c.gt_boxes * scale, c.gt_labels, marks=c.gt_marks, **options)
    predicted = draw_boxes(
        image, c.pred_boxes * scale, c.pred_labels, c.scores, marks=c.pred_marks, **options
    )
    width = max(image.shape[1], 200)  # a line of text needs that much
    captions = [text_lines(text, width, FONT, left=0) for text in _captions(c, score_threshold)]
    above = max(caption.shape[0] for caption in captions)
    row = np.full((above + image.shape[0], 2 * width + 3 * MARGIN, 3), 255, dtype=np.uint8)
    for number, (caption, panel) in enumerate(zip(captions, (truth, predicted))):
        left = MARGIN + number * (width + MARGIN)
        row[: caption.shape[0], left : left + width] = caption
        row[above:, left : left + panel.shape[1]] = panel
    title = readable(os.path.basename(c.file_name), "(an image whose name no font here can write)")
    bottom = np.full((MARGIN, row.shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([text_lines(title, row.shape[1], FONT + 4), row, bottom])


def visualize_run(cfg: CfgNode, output: str, num_images: int, score_threshold: float) -> None:
    """
    Draws predictions.png with the weights of `cfg`, curves.png if there are metrics, and
    confusion.png of the detections of the training's last evaluation.

    Args:
        cfg: of the run; its data sets are registered.
        output: folder of the pictures.
        num_images: of DATASETS.TEST[0], chosen by :func:`.choice.choose_images`.
        score_threshold: predictions below it are not drawn.
    """
    require_weights(cfg)
    if num_images < 1:
        raise InputError(f"--num-images is {num_images}, but must be at least 1")
    if not 0 <= score_threshold <= 1:
        raise InputError(f"--score-threshold is {score_threshold:g}, but scores are from 0 to 1")
    name = cfg.DATASETS.TEST[0]
    dataset_dicts = choose_images(DatasetCatalog.get(name), num_images)
    if not dataset_dicts:
        raise InputError(f"DATASETS.TEST: {name!r} has no images to draw")
    results = Predictor(cfg)([d["file_name"] for d in dataset_dicts])
    best = max((float(r.scores.max()) for r in results if len(r)), default=0.0)
    if best < score_threshold:
        logger.warning(
            f"No prediction reaches the score of {score_threshold:g}; the best is {best:.2g}. "
            "Give a lower --score-threshold to see some"
        )
    path = os.path.join(output, "predictions.png")
    predictions_beside_ground_truth(
        zip(dataset_dicts, results),
        getattr(MetadataCatalog.get(name), "thing_classes", ()),
        path,
        score_threshold=score_threshold,
    )
    logger.info("Wrote %s", path)
    metrics_json = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
    # Empty until the first line is written.
    if os.path.isfile(metrics_json) and os.path.getsize(metrics_json):
        path = os.path.join(output, "curves.png")
        plot_training_curves(metrics_json, path)
        logger.info("Wrote %s", path)
    else:
        logger.warning("No metrics in %s, so no curves are drawn", metrics_json)
    confusion_of_run(cfg, os.path.join(output, "confusion.png"))
