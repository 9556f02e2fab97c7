"""The end of each part of a transformer's layer: dropout, sum and norm (post-norm)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .dropout import Dropout
from .linear import is_watched
from .ops import add_norm as _  # noqa: F401  (defines the operators)
from .ops.bernoulli import bernoulli
from .ops.extension import HAS_CPU_KERNELS

_ops = torch.ops.detectron2_ddetr


class AddNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm`, also of a sum that it makes itself, see :func:`add_and_norm`."""

    def forward(self, x: Tensor, update: Tensor | None = None, p: float = 0.0) -> Tensor:
        """
        Args:
            x: (..., C).
            update: (..., C), added to `x`; None for nothing. For what :func:`_is_one_pass` says.
            p: share of `update` that is dropped, and the rest scaled.
        """
        if update is None:
            return super().forward(x)
        if torch.is_grad_enabled():
            return _AddNorm.apply(x, update, self.weight, self.bias, self.eps, p)
        return _forward(x, update, self.weight, self.bias, self.eps, p, needs_gradients=False)[0]


def add_and_norm(x: Tensor, update: Tensor, dropout: nn.Module, norm: nn.Module) -> Tensor:
    """
    ``norm(x + dropout(update))``, of an :class:`AddNorm` on CPUs in one pass, also backward.

    Args:
        x: (..., C), what the part of the layer was given.
        update: (..., C), what it made of it.
        dropout: draws as it would alone.
        norm: over C.
    """
    if _is_one_pass(x, update, dropout, norm):
        return norm(x, update, dropout.p if dropout.training else 0.0)
    return norm(x + dropout(update))


def _is_one_pass(x: Tensor, update: Tensor, dropout: nn.Module, norm: nn.Module) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if x.device.type != "cpu" or not HAS_CPU_KERNELS:
        return False
    if type(norm) is not AddNorm or norm.bias is None or is_watched(norm):
        return False
    if type(dropout) is not Dropout or dropout.p == 1 or is_watched(dropout):
        return False
    if x.shape != update.shape or x.shape[-1:] != norm.normalized_shape:
        return False
    if x.dtype != update.dtype or not x.dtype.is_floating_point:
        return False
    # Mixed precision has weights of 32 bits beside rows of 16, and so has the kernel.
    weights = torch.promote_types(x.dtype, torch.float32)
    if norm.weight.dtype != weights or norm.bias.dtype != weights:
        return False
    return x.is_contiguous() and update.is_contiguous()


def _forward(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float,
    needs_gradients: bool,
) -> tuple[Tensor, ...]:
    """The result, what it is before weight and bias, the factor of each row, and the mask."""
    kept = bernoulli(update.shape, 1 - p) if p > 0 else None
    scale = 1 / (1 - p)
    return *_ops.add_norm(x, update, kept, scale, weight, bias, eps, needs_gradients), kept


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float
    ) -> Tensor:
        result, *kept = _forward(x, update, weight, bias, eps, p, needs_gradients=True)
        ctx.save_for_backward(*kept, weight)
        ctx.scale = 1 / (1 - p)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normalized, factor, kept, weight = ctx.saved_tensors
        of_x, of_update, sums = _ops.add_norm_backward(
            grad.contiguous(), normalized, factor, kept, ctx.scale, weight
        )
        of_update = of_x if kept is None else of_update.view_as(of_x)
        return of_x, of_update, *sums.sum(1), None, None
