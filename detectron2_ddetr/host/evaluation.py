"""Running a model over a dataset and COCO's box AP."""

import datetime
import json
import logging
import os
import sys
import time
from typing import Any, Iterable, Mapping

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval
from torch import nn

from . import comm
from .config import CfgNode
from .data import MetadataCatalog, read_coco

logger = logging.getLogger("detectron2.evaluation")


class COCOEvaluator:
    """Box AP of a dataset whose metadata names a `json_file`, in percent."""

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._metadata = MetadataCatalog.get(dataset_name)
        self._output_dir = output_dir
        self._coco = read_coco(self._metadata.json_file)

    def reset(self) -> None:
        self._results = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the `pred_boxes`, `scores` and `pred_classes` of outputs[i]["instances"]."""
        category_ids = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for image, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.clone()
            boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
            classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
            for category, box, score in zip(classes, boxes.tolist(), scores):
                result = {"image_id": image["image_id"], "category_id": category_ids[category]}
                self._results.append(result | {"bbox": box, "score": score})

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return {"bbox": {"AP", "AP50", ..., "AP-<class>"}} on rank 0, {} elsewhere."""
        results = sum(comm.all_gather(self._results), [])
        if not comm.is_main_process():
            return {}
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
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
        classes = self._metadata.thing_classes
        if len(classes) > 1:
            # (iou, recall, class, area, max dets), -1 where there is no ground truth
            precisions = coco_eval.eval["precision"][:, :, :, 0, -1]
            for i, name in enumerate(classes):
                values = precisions[:, :, i][precisions[:, :, i] > -1]
                metrics[f"AP-{name}"] = (
                    float(np.mean(values) * 100) if values.size else float("nan")
                )
        logger.info("Evaluation results for bbox:")
        logger.info(", ".join(f"{name}: {value:.3f}" for name, value in metrics.items()))
        return {"bbox": metrics}


def inference_on_dataset(model, data_loader: Iterable, evaluator: COCOEvaluator) -> dict[str, Any]:
    """Run `model` in eval mode over the loader and return what `evaluator` finds."""
    total = len(data_loader)
    logger.info(f"Start inference on {total} batches")
    evaluator.reset()
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    start = logged = time.perf_counter()
    with torch.no_grad():
        for done, inputs in enumerate(data_loader, start=1):
            evaluator.process(inputs, model(inputs))
            if time.perf_counter() - logged > 5:
                logged = time.perf_counter()
                left = datetime.timedelta(seconds=int((logged - start) / done * (total - done)))
                logger.info(f"Inference done {done}/{total}. ETA={left}")
    if training:
        model.train()
    seconds = time.perf_counter() - start
    logger.info(f"Total inference time: {seconds:.1f} s ({seconds / max(total, 1):.6f} s / iter)")
    return evaluator.evaluate()


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare with ``TEST.EXPECTED_RESULTS``, a list of (task, metric, value, tolerance)."""
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results[task].get(metric, float("nan"))
        if not abs(actual - value) <= tolerance:  # a NaN fails too
            logger.error(f"{task} {metric} is {actual}, expected {value} +- {tolerance}")
            sys.exit(1)
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, float]:
    """Turn {"a": {"b": 1}} into {"a/b": 1}."""
    flat = {}
    for key, value in results.items():
        inner = flatten_results_dict(value) if isinstance(value, Mapping) else {None: value}
        flat |= {key if k is None else f"{key}/{k}": v for k, v in inner.items()}
    return flat
