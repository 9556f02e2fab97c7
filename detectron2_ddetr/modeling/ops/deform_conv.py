"""Deformable convolution, v1 and v2: a convolution that is told where each of its taps reads."""

from collections.abc import Sequence

import torchvision.ops
from torch import Tensor

from ..precision import at_least_float32, without_autocast


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """
    y(p) = sum_n w(n) x(p + n + offset(p, n)) mask(p, n) over the taps n, where x between cells is
    interpolated bilinearly and zero outside (arXiv 1703.06211, Eq. 2; 1811.11168, Eq. 1).

    torchvision's, but never in 16 bits: it has no bfloat16, and offsets of 16 bits would move the
    taps. Groups of channels, of the weight and of the offsets, are told by the shapes.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 G T, H', W') for T taps, row by row, and G groups of channels: (dy, dx) --
            height first -- of each tap, in cells of `x`.
        weight: (C', C / groups, kernel height, kernel width).
        mask: (N, G T, H', W'), or None for v1.
        stride, padding, dilation: (height, width).

    Returns:
        (N, C', H', W') in the dtype of `x`.
    """
    with without_autocast(x.device):
        y = torchvision.ops.deform_conv2d(
            at_least_float32(x),
            at_least_float32(offset),
            at_least_float32(weight),
            None,
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            None if mask is None else at_least_float32(mask),
        )
    return y.to(x.dtype)
