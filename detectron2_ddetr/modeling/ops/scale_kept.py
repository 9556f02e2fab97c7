"""What dropout makes of its input and its mask, in one pass over them."""

import torch
from torch import Tensor

from .extension import HAS_CPU_KERNELS

_library = torch.library.Library("detectron2_ddetr", "FRAGMENT")
_library.define("scale_kept(Tensor x, Tensor kept, float scale, Tensor(a!) result) -> ()")


def scale_kept(x: Tensor, kept: Tensor, scale: float, result: Tensor) -> Tensor:
    """
    ``x * scale`` where it is kept, 0 elsewhere, also of numbers that are not finite; without a
    gradient.

    Args:
        x: contiguous, floating point, on the CPU.
        kept: bool, of the same shape.
        scale: rounded to the type in which PyTorch multiplies `x`.
        result: like `x`, and may be `x`; it is overwritten.

    Returns:
        `result`.
    """
    if HAS_CPU_KERNELS:
        torch.ops.detectron2_ddetr.scale_kept(x, kept, scale, result)
        return result
    return torch.where(kept, x, x.new_zeros(()), out=result).mul_(scale)
