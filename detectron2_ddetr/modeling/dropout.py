"""Dropout, of which PyTorch's own takes a fifth of a training step on CPUs."""

import torch
from torch import Tensor, nn

from .ops.bernoulli import bernoulli


class Dropout(nn.Dropout):
    """
    :class:`torch.nn.Dropout`; with the same state of the generator it drops the same numbers.

    On CPUs the mask is drawn faster, and it is kept for the backward pass with a byte a number.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> the same."""
        if not self._draws(x):
            return super().forward(x)
        kept = bernoulli(x.shape, 1 - self.p)
        return torch.where(kept, x, 0).mul_(1 / (1 - self.p))

    def _draws(self, x: Tensor) -> bool:
        if not self.training or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return False
        return x.device.type == "cpu" and x.is_contiguous()
