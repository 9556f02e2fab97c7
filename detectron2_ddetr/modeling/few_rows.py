"""Layers of which few rows have a gradient: see BENCHMARKS.md."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .linear import is_watched


def learn_from_few_rows(layers: nn.Module, x: Tensor) -> Tensor:
    """
    layers(x), of which nothing is kept for the backward pass but `x`; there, rows that have a
    gradient are computed again, and no others. For boxes of all tokens, of which few are matched.

    Args:
        layers: see every row for itself, and draw no random numbers.
        x: (..., C).
    """
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if compiled or not torch.is_grad_enabled() or any(map(is_watched, layers.modules())):
        return layers(x)
    return _FewRows.apply(layers, x, *layers.parameters())


class _FewRows(torch.autograd.Function):
    """Of layers, rows (..., C) and the parameters of the layers, which it takes for autograd."""

    @staticmethod
    def forward(ctx: Any, layers: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.layers, device = layers, x.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.autocast = device, dtype, enabled
        return layers(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        chosen = grad.flatten(0, -2).ne(0).any(-1).nonzero()[:, 0]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            rows = x.flatten(0, -2)[chosen].requires_grad_()
            results = ctx.layers(rows)
        inputs = [*zip(ctx.needs_input_grad[1:], (rows, *parameters))]
        learning = [tensor for learns, tensor in inputs if learns]
        found = iter(torch.autograd.grad(results, learning, grad.flatten(0, -2)[chosen]))
        of_rows, *of_parameters = [next(found) if learns else None for learns, _ in inputs]
        if of_rows is not None:
            of_rows = torch.zeros_like(x).flatten(0, -2).index_copy_(0, chosen, of_rows).view_as(x)
        return None, of_rows, *of_parameters
