"""Layers of which few rows have a gradient: see BENCHMARKS.md."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from .linear import Linear, is_watched
from .mlp import MLP


def learn_from_few_rows(layers: nn.Module, x: Tensor) -> Tensor:
    """
    layers(x), of which on CPUs nothing is kept for the backward pass but `x`; there, rows that have
    a gradient are computed again, and no others. For boxes of all tokens, of which few are matched.
    Not on GPUs, which would wait to know these rows.

    Args:
        layers: other than an MLP of linear layers are called as always: they might draw random
            numbers, or not see every row for itself.
        x: (..., C).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return layers(x)
    if x.device.type != "cpu" or any(map(is_watched, layers.modules())):
        return layers(x)
    if type(layers) is not MLP or any(type(layer) is not Linear for layer in layers.layers):
        return layers(x)
    return _FewRows.apply(layers, x, *layers.parameters())


class _FewRows(torch.autograd.Function):
    """Of layers, rows (..., C) and the parameters of the layers, which it takes for autograd."""

    @staticmethod
    def forward(ctx: Any, layers: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.layers = layers
        dtype, enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        ctx.autocast = "cpu", dtype, enabled
        return layers(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        chosen = grad.flatten(0, -2).ne(0).any(-1).nonzero()[:, 0]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            rows = x.flatten(0, -2)[chosen].requires_grad_()
            # With the weights that they had: torch.func.functional_call lends them others.
            names = (name for name, _ in ctx.layers.named_parameters())
            results = functional_call(ctx.layers, dict(zip(names, parameters)), rows)
        inputs = [*zip(ctx.needs_input_grad[1:], (rows, *parameters))]
        learning = [tensor for learns, tensor in inputs if learns]
        found = iter(torch.autograd.grad(results, learning, grad.flatten(0, -2)[chosen]))
        of_rows, *of_parameters = [next(found) if learns else None for learns, _ in inputs]
        if of_rows is not None:
            of_rows = torch.zeros_like(x).flatten(0, -2).index_copy_(0, chosen, of_rows).view_as(x)
        return None, of_rows, *of_parameters
