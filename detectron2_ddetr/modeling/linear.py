"""Linear layers, which PyTorch trains more slowly on CPUs: see BENCHMARKS.md."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of both is for the operators of oneDNN that this PyTorch has."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False  # which may leave this process, as the operators may not
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") != weight.dtype:
            return False  # weights are cast, which the operators do not
    elif x.dtype != weight.dtype:
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def is_watched(layer: nn.Module) -> bool:
    """
    Whether hooks see or change what it is given or gives, so that it must be called for them; not
    those that say of themselves `only_looks`, for which nothing may be computed in another way.
    """
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    hooks = [hook for kind in kinds for hook in getattr(layer, f"_{kind}_hooks").values()]
    return not all(getattr(hook, "only_looks", False) for hook in hooks)


def relu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """ReLU of what a layer gives, which is overwritten where no hook has it."""
    result = layer(x)
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return F.relu(result) if not compiled and is_watched(layer) else F.relu_(result)


class Linear(nn.Linear):
    """
    :class:`torch.nn.Linear`; on CPUs what it gives and, in float32, the gradient of its input are
    products of oneDNN, with the bias in them, where PyTorch's first copies it to all rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        if x.dim() < 2 or not is_for_onednn(x, self.weight):
            return super().forward(x)
        x = x.to(self.weight.dtype)  # autocast does not know the operator
        if not torch.is_grad_enabled():
            return product(x, self.weight, self.bias)
        if x.dtype != torch.float32:
            return super().forward(x)  # whose gradients are faster in 16 bits
        result = _Linear.apply(x.flatten(0, -2), self.weight, self.bias)
        # Of rows the result is no view, which autograd would copy where it is overwritten.
        return result if x.dim() == 2 else result.view(*x.shape[:-1], len(self.weight))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN, of what :func:`is_for_onednn` has said yes to; there is no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Of rows (R, C), a weight (C', C) and a bias (C',) or None; differentiable many times."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], _: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _Linear.apply(grad, weight.T, None) if needs_x else None,
            grad.T @ x if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )
