"""Stops a training whose evaluations do not get better."""

import logging

from ..toolbox import HookBase, comm
from .kept_checkpoints import BestCheckpoint

logger = logging.getLogger(__name__)


class StoppedEarly(BaseException):
    """The training has ended before its last iteration, as it should. No error, so no Exception."""


class EarlyStop(HookBase):
    """
    Ends the training after `patience` evaluations without a better AP. Goes after the hook that
    evaluates. It has no state: what counts is the iteration of the best.
    """

    def __init__(self, best: BestCheckpoint, patience: int, period: int):
        """
        Args:
            period: iterations from one evaluation to the next.
        """
        self._best = best
        self._patience = patience
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done >= self.trainer.max_iter:
            return
        # The main process alone knows the AP.
        best = comm.all_gather(self._best.iteration)[0]
        if best is not None and self.trainer.iter - best >= self._patience * self._period:
            raise StoppedEarly(
                f"stopped early after {done} iterations: no better AP in {self._patience} "
                f"evaluations (SOLVER.EARLY_STOP_PATIENCE); the best is of iteration {best}"
            )
