"""Running a model over a dataset and COCO's box AP."""

import contextlib
import copy
import datetime
import io
import itertools
import json
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Iterable

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from torch import nn

from . import comm
from .config import CfgNode
from .data import MetadataCatalog
from .file_io import PathManager
from .logger import log_every_n_seconds
from .structures import BoxMode, Instances

logger = logging.getLogger("detectron2.evaluation")


class DatasetEvaluator:
    """Sees all inputs and outputs of a model, then returns a dict of results."""

    def reset(self) -> None: ...

    def process(self, inputs: list, outputs: list) -> None: ...

    def evaluate(self) -> dict | None: ...


class COCOEvaluator(DatasetEvaluator):
    """Box AP of a dataset whose metadata names a `json_file`, in percent."""

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: tuple[float, ...] = (),
        allow_cached_coco: bool = True,
    ):
        self._metadata = MetadataCatalog.get(dataset_name)
        if tuple(tasks or ["bbox"]) != ("bbox",) or self._metadata.get("json_file") is None:
            raise NotImplementedError("other tasks than bbox, or no json_file, need detectron2")
        self._distributed, self._output_dir = distributed, output_dir
        self._max_dets = 100 if max_dets_per_image is None else max_dets_per_image
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the `pred_boxes`, `scores` and `pred_classes` of outputs[i]["instances"]."""
        for image, output in zip(inputs, outputs):
            results = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            self._predictions.append({"image_id": image["image_id"], "instances": results})

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
        """Return {"bbox": {"AP", "AP50", ..., "AP-<class>"}} on rank 0, {} elsewhere."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if len(predictions) == 0:
            logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        results = list(itertools.chain(*(copy.deepcopy(p["instances"]) for p in predictions)))
        self._unmap_categories(results)
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(f"{self._output_dir}/instances_predictions.pth", "wb") as f:
                torch.save(predictions, f)
            with PathManager.open(f"{self._output_dir}/coco_instances_results.json", "w") as f:
                json.dump(results, f)
        if "annotations" not in self._coco_api.dataset:
            logger.info("Annotations are not available for evaluation.")
            return OrderedDict()
        logger.info("Evaluating predictions with official COCO API...")
        return OrderedDict(bbox=self._evaluate_boxes(results, img_ids))

    def _unmap_categories(self, results: list[dict]) -> None:
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        reverse = {v: k for k, v in (id_map or {}).items()}
        for result in results:
            category = result["category_id"]
            assert not reverse or category in reverse, f"class {category} of {len(reverse)} classes"
            result["category_id"] = reverse.get(category, category)

    def _evaluate_boxes(self, results: list[dict], img_ids: list[int] | None) -> dict[str, float]:
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        if not results:
            logger.warning("No predictions from the model!")
            return {name: float("nan") for name in names}
        coco_eval = COCOeval(self._coco_api, self._coco_api.loadRes(results), "bbox")
        coco_eval.params.maxDets = [1, 10, self._max_dets]
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
        precisions = coco_eval.eval["precision"]  # (iou, recall, class, area, max dets)
        stats = [100 * s if s >= 0 else float("nan") for s in coco_eval.stats[:6]]
        stats[0] = _mean_precision(precisions[:, :, :, 0, -1])  # COCOeval's is only for 100
        metrics = dict(zip(names, map(float, stats)))
        table = tabulate([metrics], "keys", "pipe", ".3f", stralign="center", numalign="center")
        logger.info(f"Evaluation results for bbox: \n{table}")
        if not np.isfinite(sum(metrics.values())):
            logger.info("Some metrics cannot be computed and is shown as NaN.")
        classes = self._metadata.get("thing_classes") or []
        if len(classes) <= 1:
            return metrics
        assert len(classes) == precisions.shape[2], f"{len(classes)} {precisions.shape}"
        per_class = [_mean_precision(precisions[:, :, i, 0, -1]) for i in range(len(classes))]
        rows = zip(classes, per_class)
        table = tabulate(rows, ["category", "AP"], "pipe", ".3f", numalign="left")
        logger.info(f"Per-category bbox AP: \n{table}")
        return metrics | {f"AP-{name}": ap for name, ap in zip(classes, per_class)}


def _mean_precision(precision: np.ndarray) -> float:
    precision = precision[precision > -1]
    return float(np.mean(precision) * 100) if precision.size else float("nan")


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Return one dict in COCO's result format per instance."""
    if instances.has("pred_masks") or instances.has("pred_keypoints"):
        raise NotImplementedError("masks and keypoints need detectron2")
    boxes = instances.pred_boxes.tensor
    boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    rows = zip(instances.pred_classes.tolist(), boxes, instances.scores.tolist())
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, (img_id, *row))) for row in rows]


def inference_on_dataset(
    model, data_loader: Iterable, evaluator: DatasetEvaluator | None, callbacks: dict | None = None
) -> dict[str, Any]:
    """Run `model` in eval mode over the loader and return what `evaluator` finds."""
    if isinstance(evaluator, list):
        raise NotImplementedError("several evaluators need detectron2")
    evaluator = DatasetEvaluator() if evaluator is None else evaluator
    total, callbacks = len(data_loader), callbacks or {}
    logger.info(f"Start inference on {total} batches")
    evaluator.reset()
    training = getattr(model, "training", False)
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            callbacks.get("on_start", lambda: None)()
            _inference_loop(model, data_loader, evaluator, total, callbacks)
            callbacks.get("on_end", lambda: None)()
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    return evaluator.evaluate() or {}


def _inference_loop(model, data_loader, evaluator, total: int, callbacks: dict) -> None:
    warmup, start, times = min(5, total - 1), time.perf_counter(), np.zeros(3)
    last = start
    for idx, inputs in enumerate(data_loader):
        ticks = [last, time.perf_counter()]
        if idx == warmup:
            start, times, ticks[0] = ticks[1], np.zeros(3), ticks[1]
        callbacks.get("before_inference", lambda: None)()
        outputs = model(inputs)
        callbacks.get("after_inference", lambda: None)()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ticks.append(time.perf_counter())
        evaluator.process(inputs, outputs)
        last = time.perf_counter()
        times += np.diff([*ticks, last])  # loading, inference, evaluation
        count = idx + 1 - warmup * (idx >= warmup)
        loading, inference, evaluation = times / count
        per_iter = (last - start) / count
        if idx >= warmup * 2 or inference > 5:
            eta = datetime.timedelta(seconds=int(per_iter * (total - idx - 1)))
            log_every_n_seconds(
                logging.INFO,
                f"Inference done {idx + 1}/{total}. Dataloading: {loading:.4f} s/iter. "
                f"Inference: {inference:.4f} s/iter. Eval: {evaluation:.4f} s/iter. "
                f"Total: {per_iter:.4f} s/iter. ETA={eta}",
                n=5,
                name=logger.name,
            )
    for what, seconds in (("time", last - start), ("pure compute time", times[1])):
        per_iter = f"{seconds / (total - warmup):.6f} s / iter per device"
        elapsed = datetime.timedelta(seconds=float(seconds))
        devices = comm.get_world_size()
        logger.info(f"Total inference {what}: {elapsed} ({per_iter}, on {devices} devices)")


def print_csv_format(results: Mapping[str, Mapping[str, float]]) -> None:
    """Log the main metrics of each task so that they can be pasted into a table."""
    for task, metrics in results.items():
        metrics = {k: v for k, v in metrics.items() if "-" not in k}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(metrics))
        logger.info("copypaste: " + ",".join(f"{v:.4f}" for v in metrics.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare with ``TEST.EXPECTED_RESULTS``, a list of (task, metric, value, tolerance)."""
    expected = cfg.TEST.EXPECTED_RESULTS
    for task, metric, value, tolerance in expected:
        # A NaN fails too.
        if not abs(results[task].get(metric, float("nan")) - value) <= tolerance:
            logger.error(f"Result verification failed!\nExpected: {expected}\nActual: {results}")
            sys.exit(1)
    if expected:
        logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, float]:
    """Turn {"a": {"b": 1}} into {"a/b": 1}."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{k}": v for k, v in flatten_results_dict(value).items()}
        else:
            flat[key] = value
    return flat
