"""The feed-forward network of a transformer's layer: linear, ReLU, dropout, linear."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .dropout import Dropout
from .linear import Linear, is_for_onednn, is_watched, product, relu_of
from .ops.bernoulli import bernoulli
from .ops.scale_kept import scale_kept, scale_passed

#: Rows at a time on CPUs. The hidden numbers of all cells of an image are more than its caches
#: hold, and more than the C library keeps between calls, to which new memory is slow.
_ROWS = 2048


def feed_forward(x: Tensor, linear1: nn.Linear, dropout: Dropout, linear2: nn.Linear) -> Tensor:
    """(..., C) -> the same; on CPUs some rows at a time, in evaluation and in float32 training."""
    # In rows: the result of a layer of more axes is a view, and a view that is overwritten costs
    # autograd a copy of its gradient.
    rows = x.flatten(0, -2)
    # Asked first: a program for any size must not be asked how many rows there are.
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    in_parts = not compiled and rows.device.type == "cpu" and len(rows) > _ROWS
    if in_parts and not torch.is_grad_enabled():
        parts = rows.split(_ROWS)
        result = torch.cat([linear2(_hidden(part, linear1, dropout)) for part in parts])
    elif (
        in_parts
        and _is_ours(dropout)
        and dropout.p < 1
        and _learns_by_onednn(rows, linear1, linear2)
    ):
        parameters = linear1.weight, linear1.bias, linear2.weight, linear2.bias
        result = _FeedForward.apply(rows, *parameters, dropout.p if dropout.training else 0.0)
    else:
        result = linear2(_hidden(rows, linear1, dropout))
    return result.view_as(x)


def _hidden(rows: Tensor, linear1: nn.Module, dropout: nn.Module) -> Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return dropout.of_relu_(linear1(rows))
    if _is_ours(dropout) and not is_watched(linear1):
        return dropout.of_relu_(linear1(rows))
    return dropout(relu_of(linear1, rows))


def _is_ours(dropout: nn.Module) -> bool:
    """Whether it need not be called, as a user's or one with hooks must be."""
    return type(dropout) is Dropout and not is_watched(dropout)


def _learns_by_onednn(rows: Tensor, *layers: nn.Linear) -> bool:
    return all(_is_plain(layer) and is_for_onednn(rows, layer.weight) for layer in layers)


def _is_plain(layer: nn.Linear) -> bool:
    """Whether a layer learns as it is, and need not be called for hooks."""
    return (
        type(layer) is Linear
        and layer.weight.dtype == torch.float32
        and layer.bias is not None
        and all(parameter.requires_grad for parameter in layer.parameters())
        and not is_watched(layer)
    )


class _FeedForward(torch.autograd.Function):
    """
    Of rows (R, C), weights (H, C) and (C, H), biases (H,) and (C,), and the share that is dropped.

    Of the hidden numbers those after dropout are kept: they are positive where neither ReLU nor
    dropout made them zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        p: float,
    ) -> Tensor:
        hidden, results = [], []
        for part in x.split(_ROWS):
            numbers = product(part, weight1, bias1)
            if p > 0:
                kept = bernoulli(numbers.shape, 1 - p)
                scale_kept(numbers, kept, 1 / (1 - p), result=numbers, of_relu=True)
            else:
                numbers.relu_()
            hidden.append(numbers)
            results.append(product(numbers, weight2, bias2))
        ctx.save_for_backward(x, weight1, weight2, *hidden)
        ctx.p = p
        return torch.cat(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, *hidden = ctx.saved_tensors
        grad_x, grad_bias1 = [], torch.zeros_like(weight1[:, 0])
        # Both (H, C): a product with fewer columns than rows is the faster one.
        grad_weight1, grad_weight2 = torch.zeros_like(weight1), torch.zeros_like(weight1)
        # By `out`, as counters of products know them.
        for of_result, part, numbers in zip(grad.split(_ROWS), x.split(_ROWS), hidden):
            torch.addmm(grad_weight2, numbers.T, of_result, out=grad_weight2)
            of_hidden = product(of_result, weight2.T, None)
            scale_passed(of_hidden, numbers, 1 / (1 - ctx.p), result=of_hidden)
            torch.addmm(grad_weight1, of_hidden.T, part, out=grad_weight1)
            grad_bias1 += of_hidden.sum(0)
            grad_x.append(product(of_hidden, weight1.T, None))
        return torch.cat(grad_x), grad_weight1, grad_bias1, grad_weight2.T, grad.sum(0), None
