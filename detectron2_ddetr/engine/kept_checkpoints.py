"""Which checkpoints of a training stay: the best by AP, and of the periodic ones the newest."""

import json
import logging
import os
import re
from typing import Any

from ..checkpoint.checkpointer import Checkpointer
from ..errors import InputError
from ..toolbox import HookBase, comm

logger = logging.getLogger(__name__)

#: The weights of the best evaluation, and what they are.
BEST = "model_best"


class BestCheckpoint(HookBase):
    """
    Keeps the weights of the best evaluation as model_best.pth, and beside it, in model_best.json,
    of which iteration they are, by which metric on which data set, and the classes by row.

    A training that is resumed goes on from that json.
    """

    def __init__(self, checkpointer: Checkpointer, data: str, ema_decay: float = 0.0):
        """
        Args:
            data: the data set whose AP counts.
            ema_decay: of the average that the weights are; 0 for weights as they are trained.
        """
        self.checkpointer = checkpointer
        self.data = data
        self.ema_decay = ema_decay
        #: Of the best evaluation so far, on the main process; None before there is one.
        self.iteration: int | None = None
        self._json_file = os.path.join(checkpointer.save_dir, f"{BEST}.json")
        self._best: float | None = None

    def resume(self) -> None:
        """
        The AP of another data set is none to compare with, which is said.

        Raises:
            InputError: if model_best.json is none.
        """
        if not os.path.isfile(self._json_file):
            return
        try:
            with open(self._json_file, encoding="utf-8") as file:
                content = json.load(file)
            best, iteration, data = (
                float(content["value"]),
                int(content["iteration"]),
                content["data"],
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{self._json_file}: cannot be read ({error!r}); remove it, and the next "
                "evaluation becomes the best"
            ) from error
        if data != self.data:
            logger.warning(
                f"{BEST}.pth is the best on {data!r}, and {self.data!r} is evaluated on now: the "
                "next evaluation becomes the best"
            )
            return
        self._best, self.iteration = best, iteration

    def update(self, results: dict[str, Any]) -> None:
        """
        Args:
            results: of a whole evaluation, as the trainer's `test` returns them: by data set where
                there are several.
        """
        of_data = results.get(self.data, {})
        # A data set may be called "bbox".
        ap = (of_data if "bbox" in of_data else results).get("bbox", {}).get("AP")
        if (
            ap is None
            or not comm.is_main_process()
            or (self._best is not None and ap <= self._best)
        ):
            return
        self._best, self.iteration = ap, self.trainer.iter
        self.checkpointer.save_weights(BEST, iteration=self.iteration)
        names, ids = self.checkpointer.class_names, self.checkpointer.category_ids
        content = {
            "weights": f"{BEST}.pth",
            "ema_decay": self.ema_decay,
            "iteration": self.iteration,
            "metric": "bbox/AP",
            "value": ap,
            "data": self.data,
            "classes": names,
            "category_ids": ids,
        }
        temporary = f"{self._json_file}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
        os.replace(temporary, self._json_file)
        logger.info(f"best so far: AP {ap:.3f} on {self.data}; weights kept as {BEST}.pth")


class KeepNewest(HookBase):
    """
    Removes periodic checkpoints but for the newest. Those of later iterations, which a training has
    that was sent back to an earlier one, do not count: they are written over in time.
    """

    def __init__(self, folder: str, period: int, number: int):
        """
        Args:
            period: iterations from one to the next.
            number: how many stay; at least 1.
        """
        self.folder = folder
        self.period = period
        self.number = number

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period:
            return
        names = [n for n in os.listdir(self.folder) if re.fullmatch(r"model_\d{7}\.pth", n)]
        names = [n for n in names if n <= f"model_{self.trainer.iter:07d}.pth"]
        for name in sorted(names)[: -self.number]:
            os.remove(os.path.join(self.folder, name))
