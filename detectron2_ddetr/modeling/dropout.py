"""Dropout, of which PyTorch's own takes a fifth of a training step on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .ops.bernoulli import bernoulli, bernoulli_like
from .ops.scale_kept import scale_kept, scale_passed


class Dropout(nn.Dropout):
    """
    :class:`torch.nn.Dropout`; with the same state of the generator it drops the same numbers.

    On CPUs the mask is drawn and applied faster, and takes a byte a number where it is kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> the same."""
        if not self.draws(x):
            return super().forward(x)
        if torch.compiler.is_compiling():
            return _compiled(x, self.p)
        return _Dropout.apply(x, self.p)

    def of_relu_(self, x: Tensor) -> Tensor:
        """
        Dropout of the ReLU of `x`, which is overwritten, in training on CPUs by the result. What a
        compiler makes of it may leave `x` as it is.

        Without a compiler neither the mask nor the result of ReLU is kept for the backward pass:
        both can be told from the result, which is positive where neither of them made it zero.
        """
        if not self.draws(x):
            return super().forward(F.relu_(x))
        if torch.compiler.is_compiling():
            return _compiled(F.relu(x), self.p)
        return _DropoutOfReLU.apply(x, self.p)

    def draws(self, x: Tensor) -> bool:
        """Whether the mask of `x` is drawn here, and not by PyTorch."""
        if not self.training or not 0 < self.p < 1:
            return False
        return x.device.type == "cpu" and x.is_contiguous()


def _compiled(x: Tensor, p: float) -> Tensor:
    """Dropout in products, of which a compiler makes one pass with what is around them."""
    return x * bernoulli_like(x, 1 - p) * (1 / (1 - p))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept, ctx.scale = bernoulli(x.shape, 1 - p), 1 / (1 - p)
        ctx.save_for_backward(kept)
        return scale_kept(x, kept, ctx.scale, torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        grad = grad.contiguous()
        return scale_kept(grad, kept, ctx.scale, torch.empty_like(grad)), None


class _DropoutOfReLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, p: float) -> Tensor:
        kept = bernoulli(x.shape, 1 - p)
        return scale_kept(x, kept, 1 / (1 - p), result=x, of_relu=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.p = inputs
        ctx.mark_dirty(x)
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        grad = grad.contiguous()
        return scale_passed(grad, output, 1 / (1 - ctx.p), torch.empty_like(grad)), None
