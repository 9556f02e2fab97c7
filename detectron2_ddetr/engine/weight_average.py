"""An exponential moving average of the weights, which is what is evaluated and kept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..toolbox import HookBase

#: In the state of the hook: the weights that the optimiser moves.
TRAINED = "trained_weights"


class WeightAverage(HookBase):
    """
    Averages weights and running statistics after each update, and makes the average what the
    trainer's checkpointer saves as the model; the weights that are trained are in its state. Goes
    before the hook that saves when a training is stopped.

    The first average is the weights after the first update; with n averages before it, the next is
    d * average + (1 - d) * weights, d = min(decay, (1 + n) / (10 + n)), so that in a short training
    too the beginning is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: that is trained, not wrapped.
            decay: in (0, 1), the d of a long training.
        """
        self._trained = model
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The average."""
        return self._average.module

    def before_train(self) -> None:
        if self._average.n_averaged == 0:
            self._begin_with_trained()
        self.trainer.checkpointer.model = self.model

    def after_step(self) -> None:
        self._average.update_parameters(self._trained)

    def state_dict(self) -> dict[str, Any]:
        updates = int(self._average.n_averaged)
        return {"updates": updates, TRAINED: self._trained.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The checkpoint's model, which is the average, has been loaded into what is trained."""
        self._begin_with_trained()
        self._trained.load_state_dict(state_dict[TRAINED])
        self._average.n_averaged.fill_(state_dict["updates"])

    def _begin_with_trained(self) -> None:
        self.model.load_state_dict(self._trained.state_dict())

    def _update(self, average: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
        decay = min(self._decay, (1 + int(updates)) / (10 + int(updates)))
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(average, weights, updates)
