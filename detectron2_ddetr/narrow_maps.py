"""Convolutions in 16 bits of narrow maps, which oneDNN computes wrongly on processors with AMX."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .toolbox import Conv2d
from .weight_gradients import after_convolution


def widen_narrow_maps(model: nn.Module) -> None:
    """
    Changes convolutions so that of maps from which a stride leaves one column, and on which oneDNN
    reads memory that nobody wrote (results of 1e37, NaN; torch 2.14.1), they compute two: the same
    numbers, and a column that is left out. Only in 16 bits on processors with AMX.

    The shipped configs have such maps of images, as resized, that are 64 pixels wide or less. What
    is compiled or traced stays as it was: a program must not depend on the width.
    """
    if not torch.cpu._is_amx_tile_supported():
        return
    for module in model.modules():
        # Not what is derived of them, which may take other inputs.
        if type(module) in (nn.Conv2d, Conv2d) and _may_fail(module):
            module.forward = functools.partial(_forward, module)


def _may_fail(conv: nn.Conv2d) -> bool:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    return conv.stride[1] > 1 and max(conv.kernel_size) > 1


def leaves_one_column(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `conv` is one that :func:`widen_narrow_maps` changed, and `x` such a map for it."""
    if getattr(vars(conv).get("forward"), "func", None) is not _forward:
        return False
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    kernel = conv.dilation[1] * (conv.kernel_size[1] - 1) + 1
    return dtype.itemsize == 2 and x.shape[3] + 2 * conv.padding[1] < kernel + conv.stride[1]


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if not leaves_one_column(conv, x):
        return type(conv).forward(conv, x)
    x = F.pad(x, (0, conv.stride[1]))
    x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return after_convolution(conv, x[..., :1])
