"""curves.png while a model trains."""

import os

from ..toolbox import HookBase, comm
from .curves import plot_training_curves


class DrawCurves(HookBase):
    """
    Draws curves.png in OUTPUT_DIR after each evaluation. Goes after the hook that writes
    metrics.json.
    """

    def after_step(self) -> None:
        if self._evaluated() and self.trainer.iter + 1 < self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        # What stops a training early, by its evaluation, stops it before this hook's turn.
        if self._evaluated() or self.trainer.iter + 1 >= self.trainer.max_iter:
            self._draw()

    def _evaluated(self) -> bool:
        """Whether an evaluation belongs to this iteration."""
        period = self.trainer.cfg.TEST.EVAL_PERIOD
        return period > 0 and (self.trainer.iter + 1) % period == 0

    def _draw(self) -> None:
        if comm.is_main_process():
            folder = self.trainer.cfg.OUTPUT_DIR
            plot_training_curves(
                os.path.join(folder, "metrics.json"), os.path.join(folder, "curves.png")
            )
