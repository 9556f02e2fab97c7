"""COCO's box AP, the same on either toolbox, for any number of detections per image."""

import contextlib
import io
import json
import logging
import math
import os
from itertools import chain
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..toolbox import BoxMode, CfgNode, DatasetCatalog, DatasetEvaluator, MetadataCatalog, comm

logger = logging.getLogger(__name__)

#: Place along the IoU thresholds 0.5, 0.55, ..., 0.95 (None: all) and along COCO's area ranges.
_METRICS = {
    "AP": (None, 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}


class BoxEvaluator(DatasetEvaluator):
    """
    Evaluates "pred_boxes", "scores" and "pred_classes" of a model's "instances".

    The figures are those of pycocotools. What has no ground truth (a class without a box, large
    boxes where all are small) has no AP: it is named in the log and left out of the results, so
    that they hold numbers only.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, max_dets_per_image: int = 100
    ):
        """
        Args:
            dataset_name: a registered data set, with a "json_file" in COCO's format or without.
            output_dir: gets coco_instances_results.json, all detections in COCO's format of
                results; made if it does not exist. None to write nothing.
            max_dets_per_image: only so many detections of an image count, the best of each class.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.name = dataset_name
        self.output_dir = output_dir
        self.max_dets_per_image = max_dets_per_image
        self._coco = _indexed(_ground_truth(dataset_name))
        classes = getattr(metadata, "thing_classes", None) or []
        ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
        #: Category ids by class number.
        self._category_ids = (
            {i: j for j, i in ids.items()} if ids else {i: i for i in range(len(classes))}
        )
        self._class_names = dict(enumerate(classes))
        self._predictions: list[tuple] = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keeps the detections of outputs[i]["instances"], boxes (x1, y1, x2, y2) in px."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            boxes = instances.pred_boxes.tensor.detach().cpu().clone()
            boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
            scores, classes = (x.cpu().numpy() for x in (instances.scores, instances.pred_classes))
            self._predictions.append((image["image_id"], boxes.numpy(), scores, classes))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            On the main process {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl"}} in percent,
            and "AP-<class>" if there are several classes; {} on the other processes, and where the
            data set has no annotations.
        """
        predictions = list(chain.from_iterable(comm.all_gather(self._predictions)))
        if not comm.is_main_process():
            return {}
        results = [
            {
                "image_id": image_id,
                "category_id": self._category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image_id, boxes, scores, labels in predictions
            for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist())
            if label in self._category_ids  # else a class that this data set does not have
        ]
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            path = os.path.join(self.output_dir, "coco_instances_results.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(results, file)
            logger.info(f"Wrote the {len(results)} detections to {path}")
        if not self._coco.anns:
            logger.warning(f"{self.name} has no annotations: nothing to compare detections with")
            return {}
        if not results:
            logger.warning(f"{self.name}: the model detected nothing at all")
        return {"bbox": self._box_ap(results)}

    def _box_ap(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """AP in percent by name, of what has ground truth."""
        limit = self.max_dets_per_image
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                self._coco, _indexed(_as_annotations(results, self._coco)), "bbox"
            )
            evaluation.params.maxDets = [1, min(10, limit), limit]
            evaluation.evaluate()
            evaluation.accumulate()
        # (IoU threshold, recall, category, area range, limit), -1 where there is no ground truth.
        precision = evaluation.eval["precision"][..., -1]
        recall = evaluation.eval["recall"]  # (IoU threshold, category, area range, limit)
        metrics = {
            name: _percent(precision[slice(None) if iou is None else iou, ..., area])
            for name, (iou, area) in _METRICS.items()
        }
        where = f"{self.name}, at most {limit} detections per image"
        logger.info(f"Box AP of {where}:\n{_table(metrics)}")
        recalls = {f"AR{n}": _percent(recall[:, :, 0, i]) for i, n in enumerate([1, 10, limit])}
        logger.info(f"Box AR of {where}:\n{_table(recalls)}")
        if len(self._class_names) > 1:
            places = {category: k for k, category in enumerate(evaluation.params.catIds)}
            of_class = {
                name: places.get(self._category_ids.get(i)) for i, name in self._class_names.items()
            }
            by_class = {
                name: None if k is None else _percent(precision[:, :, k, 0])
                for name, k in of_class.items()
            }
            logger.info(f"Box AP of {where}, by class:\n{_table(by_class)}")
            metrics |= {f"AP-{name}": ap for name, ap in by_class.items()}
        return {name: ap for name, ap in metrics.items() if ap is not None}


def build_evaluator(cfg: CfgNode, dataset_name: str) -> BoxEvaluator:
    """
    The evaluator of one data set of DATASETS.TEST, with the limit TEST.DETECTIONS_PER_IMAGE.

    It writes its detections into OUTPUT_DIR if there is one data set, and into
    OUTPUT_DIR/inference/<data set> if there are several.
    """
    output_dir = cfg.OUTPUT_DIR
    if len(cfg.DATASETS.TEST) > 1:
        output_dir = os.path.join(output_dir, "inference", dataset_name)
    return BoxEvaluator(dataset_name, output_dir, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)


def finite_results(results: dict[str, Any]) -> dict[str, Any]:
    """
    A nested dict of metrics without those that are NaN or infinite, which are named in the log.

    metrics.json could not hold them: json has no such numbers.
    """
    kept: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            kept[name] = finite_results(value)
        elif math.isfinite(value):
            kept[name] = value
        else:
            logger.info(f"{name} is {value}: not recorded")
    return kept


def _ground_truth(dataset_name: str) -> dict[str, list[dict[str, Any]]]:
    """A data set in COCO's format; "annotations" is empty if the json has none."""
    metadata = MetadataCatalog.get(dataset_name)
    json_file = getattr(metadata, "json_file", None)
    if json_file is None:
        content = _from_dataset_dicts(dataset_name, metadata.thing_classes)
    else:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    annotations = []
    for number, annotation in enumerate(content.get("annotations", ()), start=1):
        width, height = annotation["bbox"][2:]
        given = {key: value for key, value in annotation.items() if value is not None}
        # The ids are ours, since COCOeval takes a match with annotation 0 for none.
        annotations.append({"area": width * height, "iscrowd": 0, **given, "id": number})
    return {**content, "annotations": annotations}


def _from_dataset_dicts(name: str, classes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Of a data set that has no json file; a category's id is its class number."""
    dataset_dicts = DatasetCatalog.get(name)
    annotations = [
        {
            "image_id": d["image_id"],
            "category_id": a["category_id"],
            "bbox": list(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)),
            "iscrowd": a.get("iscrowd", 0),
        }
        for d in dataset_dicts
        for a in d.get("annotations", ())
    ]
    return {
        "images": [{"id": d["image_id"]} for d in dataset_dicts],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
    }


def _as_annotations(results: list[dict[str, Any]], coco: COCO) -> dict[str, list[dict[str, Any]]]:
    """Detections in the form of a COCO data set, of which COCOeval matches pairs."""
    annotations = [
        {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for number, result in enumerate(results, start=1)
    ]
    shared = {key: coco.dataset[key] for key in ("images", "categories")}
    return {**shared, "annotations": annotations}


def _indexed(content: dict[str, list[dict[str, Any]]]) -> COCO:
    """`content` as pycocotools wants it."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _percent(values: np.ndarray) -> float | None:
    """Mean of the values that are not -1, times 100; None if there is none."""
    values = values[values > -1]
    return float(100 * values.mean()) if values.size else None


def _table(metrics: dict[str, float | None]) -> str:
    """Names and values, three pairs in a line."""
    cells = [
        (name, "no ground truth" if value is None else f"{value:.3f}")
        for name, value in metrics.items()
    ]
    names, values = (max(len(cell[i]) for cell in cells) for i in (0, 1))
    cells = [f"{name:<{names}}  {value:>{values}}" for name, value in cells]
    return "\n".join("  |  ".join(cells[i : i + 3]) for i in range(0, len(cells), 3))
