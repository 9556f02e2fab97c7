"""COCO's box AP, the same on either toolbox, for any number of detections per image."""

import json
import logging
import math
import os
from itertools import chain
from typing import Any

from ..toolbox import CfgNode, DatasetEvaluator, comm
from .box_metrics import box_metrics, run_coco
from .detections_file import FILE_NAME, Columns, columns_of, results_of
from .ground_truth import GroundTruth

logger = logging.getLogger(__name__)


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
                results, and per_class.csv; made if it does not exist. None to write nothing.
            max_dets_per_image: only so many detections of an image count, the best of each class.
        """
        self.name = dataset_name
        self.output_dir = output_dir
        self.max_dets_per_image = max_dets_per_image
        self.truth = GroundTruth(dataset_name)
        self._predictions: list[tuple[int | str, Columns]] = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keeps the detections of outputs[i]["instances"], boxes (x1, y1, x2, y2) in px."""
        for image, output in zip(inputs, outputs, strict=True):
            self._predictions.append((image["image_id"], columns_of(output["instances"])))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            On the main process {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR"}} in
            percent, and "AP-<class>" if there are several classes; {} on the other processes, and
            where the data set has no annotations.
        """
        predictions = list(chain.from_iterable(comm.all_gather(self._predictions)))
        if not comm.is_main_process():
            return {}
        # Classes that this data set does not have are left out.
        results = [
            result
            for image_id, columns in predictions
            for result in results_of(image_id, columns, self.truth.category_ids)
        ]
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            path = os.path.join(self.output_dir, FILE_NAME)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(results, file)
            logger.info(f"Wrote the {len(results)} detections to {path}")
        if not self.truth.coco.anns:
            logger.warning(f"{self.name} has no annotations: nothing to compare detections with")
            return {}
        if not results:
            logger.warning(f"{self.name}: the model detected nothing at all")
        evaluation = run_coco(self.truth.coco, results, self.max_dets_per_image)
        metrics = box_metrics(evaluation, self.truth.classes)
        logger.info(f"Box AP of {self.name}, {metrics.table()}")
        if self.output_dir:
            metrics.write_csv(os.path.join(self.output_dir, "per_class.csv"))
        return {"bbox": metrics.results()}


def build_evaluator(cfg: CfgNode, dataset_name: str) -> BoxEvaluator:
    """
    The evaluator of one data set of DATASETS.TEST, with the limit TEST.DETECTIONS_PER_IMAGE.

    It writes its detections into :func:`detections_folder`.
    """
    return BoxEvaluator(
        dataset_name,
        detections_folder(cfg, dataset_name),
        max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def detections_folder(cfg: CfgNode, dataset_name: str) -> str:
    """OUTPUT_DIR, or its inference/<data set> if there are several in DATASETS.TEST."""
    if len(cfg.DATASETS.TEST) > 1:
        return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    return cfg.OUTPUT_DIR


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
