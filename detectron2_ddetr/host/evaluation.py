"""Running a model over a dataset and COCO's box AP."""

import json
import logging
import os
import sys
import time
from datetime import timedelta
from typing import Any, Iterable, Mapping

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from . import comm
from .config import CfgNode
from .data import MetadataCatalog

logger = logging.getLogger("detectron2.evaluation")


class COCOEvaluator:
    """Box AP of a dataset whose metadata names a `json_file`, in percent."""

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._metadata, self._output_dir = MetadataCatalog.get(dataset_name), output_dir
        self._coco = COCO(self._metadata.json_file)

    def reset(self) -> None:
        self._results = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the `pred_boxes`, `scores` and `pred_classes` of outputs[i]["instances"]."""
        category_ids = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for image, output in zip(inputs, outputs):
            fields = output["instances"].get_fields()
            boxes = fields["pred_boxes"].tensor.clone()
            boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
            rows = zip(boxes.tolist(), fields["scores"].tolist(), fields["pred_classes"].tolist())
            for box, score, i in rows:
                result = {"image_id": image["image_id"], "category_id": category_ids[i]}
                self._results.append(result | {"bbox": box, "score": score})

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return {"bbox": {"AP", "AP50", ..., "AP-<class>"}} on rank 0, {} elsewhere."""
        results = sum(comm.all_gather(self._results), [])
        if not comm.is_main_process():
            return {}
        if self._output_dir:
            with open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as f:
                json.dump(results, f)
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        if not results:
            logger.warning("No predictions from the model!")
            return {"bbox": {name: float("nan") for name in names}}
        coco_eval = COCOeval(self._coco, self._coco.loadRes(results), "bbox")
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
        stats = (float(100 * s) if s >= 0 else float("nan") for s in coco_eval.stats)
        metrics = dict(zip(names, stats))
        # (iou, recall, class, area, max dets), -1 where there is no ground truth
        precisions = coco_eval.eval["precision"][:, :, :, 0, -1]
        classes = self._metadata.thing_classes
        for i, name in enumerate(classes if len(classes) > 1 else []):
            values = precisions[:, :, i][precisions[:, :, i] > -1]
            metrics[f"AP-{name}"] = float(np.mean(values) * 100) if values.size else float("nan")
        logger.info("  ".join(f"{k} {v:.1f}" for k, v in metrics.items() if "-" in k))
        main = {k: v for k, v in metrics.items() if "-" not in k}
        logger.info("copypaste: " + ",".join(main))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))
        return {"bbox": metrics}


def inference_on_dataset(model, data_loader: Iterable, evaluator: COCOEvaluator) -> dict[str, Any]:
    """Run `model` in eval mode over the loader and return what `evaluator` finds."""
    total, training = len(data_loader), model.training
    evaluator.reset()
    model.eval()
    start = logged = time.perf_counter()
    with torch.no_grad():
        for done, inputs in enumerate(data_loader, start=1):
            evaluator.process(inputs, model(inputs))
            now = time.perf_counter()
            if now - logged > 5 or done == total:
                logged, left = now, timedelta(seconds=int((now - start) / done * (total - done)))
                per_iter = f"{(now - start) / done:.4f} s / iter"
                logger.info(f"Inference done {done}/{total}, {per_iter}, ETA={left}")
    model.train(training)
    return evaluator.evaluate()


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare with ``TEST.EXPECTED_RESULTS``, a list of (task, metric, value, tolerance)."""
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        if not abs(results[task].get(metric, float("nan")) - value) <= tolerance:  # or it is NaN
            logger.error(f"Expected {task} {metric} {value} +- {tolerance}, got {results[task]}")
            sys.exit(1)
    return True
