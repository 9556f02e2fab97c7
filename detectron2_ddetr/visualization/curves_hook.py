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
        period, done = self.trainer.cfg.TEST.EVAL_PERIOD, self.trainer.iter + 1
        if period > 0 and done % period == 0 and done < self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # else it was stopped
            self._draw()

    def _draw(self) -> None:
        if comm.is_main_process():
            folder = self.trainer.cfg.OUTPUT_DIR
            plot_training_curves(
                os.path.join(folder, "metrics.json"), os.path.join(folder, "curves.png")
            )
