"""metrics.json, also of a training that is resumed: no row is missing, and none is there twice."""

import importlib.util
import json
import logging
import os

import numpy as np

from ..errors import InputError
from ..toolbox import HookBase, comm, hooks

logger = logging.getLogger(__name__)


def read_history(path: str) -> list[dict]:
    """
    The rows of a metrics.json, one json object per line; none if it does not exist. What a killed
    process has left of a last line is left out, and said.

    Raises:
        InputError: names the line that is no row.
    """
    if not os.path.isfile(path):
        return []
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{where}: not valid json ({error}); remove this line") from error
            if line:
                logger.warning("%s: left out, since the run was killed while writing it", where)
            continue
        if not isinstance(row, dict) or type(row.get("iteration")) is not int:
            raise InputError(f"{where}: expected an object with an int 'iteration'; remove it")
        rows.append(row)
    return rows


def continue_history(path: str, iteration: int) -> list[dict]:
    """
    Takes the rows after `iteration` out of the file: a training that goes on from there writes them
    again.

    Returns:
        The rows that stay.
    """
    if not os.path.isfile(path):
        return []
    kept = [row for row in read_history(path) if row["iteration"] <= iteration]
    # Into the same file, which detectron2's writer has open by now.
    with open(path, "r+", encoding="utf-8") as file:
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in kept)
        file.truncate()
    return kept


def usable_writers(writers: list) -> list:
    """
    Those of detectron2 without that of the terminal, and without that of tensorboard where it is
    not installed, which is said.
    """
    writers = [w for w in writers if type(w).__name__ != "CommonMetricPrinter"]
    if importlib.util.find_spec("tensorboard"):
        return writers
    kept = [writer for writer in writers if not _is_tensorboard(writer)]
    if len(kept) < len(writers):
        logger.warning(
            "tensorboard is not installed, so no event files are written (pip install "
            "tensorboard); metrics.json has the same numbers"
        )
    return kept


def _is_tensorboard(writer: object) -> bool:
    return type(writer).__name__ == "TensorboardXWriter"


class Recorder(hooks.PeriodicWriter):
    """
    Writes after each evaluation too: of two between two writings, one would be lost. The events of
    tensorboard after the checkpoint that a training goes on from are declared void, so that no
    step is there twice.
    """

    def __init__(self, writers: list, period: int, eval_period: int):
        super().__init__(writers, period)
        self._writers = writers
        self._periods = [p for p in (period, eval_period) if p > 0]

    def before_train(self) -> None:
        folder, start = self.trainer.cfg.OUTPUT_DIR, self.trainer.start_iter
        for number, writer in enumerate(self._writers):
            if start and _is_tensorboard(writer):
                self._writers[number] = type(writer)(folder, purge_step=start)

    def put_image(self, name: str, picture: np.ndarray) -> None:
        """Keeps an (H, W, 3) uint8 RGB picture for tensorboard; nobody else would take it away."""
        if any(map(_is_tensorboard, self._writers)):
            self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            for writer in self._writers:
                writer.write()


class Evaluation(hooks.EvalHook):
    """In the end only where all iterations are done, and not where the last was broken off."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class MissedEvaluation(HookBase):
    """
    Evaluates first where a training was stopped between the last checkpoint and the end of the
    evaluation that was due with it. Where nothing is left to train, it ends as if the last
    iteration had just been done.
    """

    def __init__(self, *hooks_of_evaluation: HookBase):
        """
        Args:
            hooks_of_evaluation: what is to happen after such an iteration, in that order.
        """
        self._hooks = hooks_of_evaluation
        self._missed = False

    def resume(self, rows: list[dict], iteration: int) -> None:
        """
        Args:
            rows: of the history, on the main process.
            iteration: of the checkpoint.
        """
        done = any(
            row["iteration"] == iteration and any(key.endswith("bbox/AP") for key in row)
            for row in rows
        )
        self._missed = not comm.all_gather(done)[0]

    def before_train(self) -> None:
        trainer = self.trainer
        # As if the iteration of the checkpoint had just ended.
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        if self._missed:
            for hook in self._hooks:
                hook.after_step()
        if trainer.start_iter < trainer.max_iter:  # else the loop of none counts it
            trainer.iter = trainer.storage.iter = trainer.start_iter
