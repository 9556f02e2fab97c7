"""Running a model over a dataset."""

import logging
import sys
import time
from datetime import timedelta
from typing import Any, Iterable, Mapping

import torch

from .config import CfgNode

logger = logging.getLogger("detectron2.evaluation")


class DatasetEvaluator:
    """What looks at the inputs and outputs of a model, one batch after another."""

    def reset(self) -> None: ...
    def process(self, inputs: list[dict], outputs: list[dict]) -> None: ...
    def evaluate(self) -> dict[str, dict[str, float]]: ...


def inference_on_dataset(
    model, data_loader: Iterable, evaluator: DatasetEvaluator
) -> dict[str, Any]:
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
