"""Layers of maps whose channels are the last axis, (N, H, W, C), under the usual names."""

import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """:class:`nn.Conv2d` from (N, H, W, C) to (N, H', W', C')."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of (..., C): a linear layer with the weight of a convolution."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class ChannelNorm(nn.Module):
    """LayerNorm over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def depthwise(channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> Convolution:
    """A convolution of each channel by itself."""
    return Convolution(channels, channels, kernel_size, stride, padding, groups=channels)


def padded(x: Tensor, height: int, width: int) -> Tensor:
    """`x`, (N, H, W, C), with zeros below and right up to (`height`, `width`)."""
    missing = height - x.shape[1], width - x.shape[2]
    return F.pad(x, (0, 0, 0, missing[1], 0, missing[0])) if any(missing) else x
