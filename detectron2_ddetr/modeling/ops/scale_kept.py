"""What dropout makes of its input and its mask, and of gradients, in one pass over them."""

import torch
from torch import Tensor

from .extension import HAS_CPU_KERNELS

_library = torch.library.Library("detectron2_ddetr", "FRAGMENT")
_library.define(
    "scale_kept(Tensor x, Tensor kept, float scale, bool of_relu, Tensor(a!) result) -> ()"
)
_library.define("scale_passed(Tensor grad, Tensor of, float scale, Tensor(a!) result) -> ()")


def scale_kept(
    x: Tensor, kept: Tensor, scale: float, result: Tensor, *, of_relu: bool = False
) -> Tensor:
    """
    ``x * scale`` where it is kept, 0 elsewhere, also of numbers that are not finite; without a
    gradient.

    Args:
        x: contiguous, floating point, on the CPU.
        kept: bool, of the same shape.
        scale: rounded to the type in which PyTorch multiplies `x`.
        result: like `x`, and may be `x`; it is overwritten.
        of_relu: of ``relu(x)`` instead.

    Returns:
        `result`.
    """
    if HAS_CPU_KERNELS:
        torch.ops.detectron2_ddetr.scale_kept(x, kept, scale, of_relu, result)
        return result
    x = x.relu() if of_relu else x
    return torch.where(kept, x, x.new_zeros(()), out=result).mul_(scale)


def scale_passed(grad: Tensor, of: Tensor, scale: float, result: Tensor) -> Tensor:
    """
    The gradient before a ReLU and a dropout: ``grad * scale``, 0 where one of them gave 0.

    Args:
        grad: contiguous, floating point, on the CPU.
        of: what they gave, like `grad`.
        scale: of the dropout.
        result: like `grad`, and may be `grad`; it is overwritten.

    Returns:
        `result`.
    """
    if HAS_CPU_KERNELS:
        torch.ops.detectron2_ddetr.scale_passed(grad, of, scale, result)
        return result
    torch.ops.aten.threshold_backward(grad, of, 0, grad_input=result)
    return result.mul_(scale)
