"""The line of a training that goes to the terminal."""

import logging
from collections.abc import Iterable

import torch

from ..data.time_left import in_words
from ..toolbox import HookBase

# That of the package: its name takes the fewest of the columns.
logger = logging.getLogger("detectron2_ddetr")


class Progress(HookBase):
    """
    Logs, every `period` iterations, what fits into a line of 160 columns: the time that is left,
    the total loss and its terms of the last layer.

    Those of the other layers are in metrics.json only, and so are the seconds that are left and
    what the GPU has needed at most, in MiB.
    """

    def __init__(self, period: int = 20):
        self.period = period

    def after_step(self) -> None:
        trainer = self.trainer
        done = trainer.iter + 1
        if done % self.period and done != trainer.max_iter:
            return
        latest = {k: v for k, (v, _) in trainer.storage.latest_with_smoothing_hint().items()}
        cells = {"iter": str(trainer.iter)}
        if "time" in latest:  # not in the first iterations
            seconds = latest["time"] * (trainer.max_iter - done)
            cells = {"eta": in_words(seconds), **cells}
            trainer.storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated() >> 20
            trainer.storage.put_scalar("max_mem", memory, smoothing_hint=False)
        cells |= {name: f"{latest[name]:.4g}" for name in last_layer(latest)}
        cells |= {name: f"{latest[name]:.3g}" for name in ("time", "lr") if name in latest}
        logger.info("  ".join(f"{name}: {value}" for name, value in cells.items()))


def last_layer(names: Iterable[str]) -> list[str]:
    """
    The losses among the names, the total one first, without those that are the same term of
    another layer, as loss_ce_0 and loss_ce_enc are of loss_ce.
    """
    losses = [name for name in names if "loss" in name]
    terms = [a for a in losses if not any(a.startswith(f"{b}_") for b in losses)]
    return sorted(terms, key=lambda name: name != "total_loss")
