"""Depthwise convolutions in bfloat16 on CPUs."""

import functools
from typing import Any

import torch
from torch import Tensor, nn


class _InFloat32:
    """
    Before a convolution in the order of bases: what learns on a CPU is computed in float32, since
    oneDNN's depthwise convolutions take 2 to 6 times as long forward and backward in bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Its class has no name by which pickle could find it, but that of the plain one has."""
        return _empty, (self.plain,), self.__dict__


@functools.cache
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    return type(kind.__name__, (_InFloat32, kind), {"plain": kind})


def _empty(kind: type[nn.Conv2d]) -> nn.Conv2d:
    return _in_float32(kind).__new__(_in_float32(kind))


def learn_in_float32(network: nn.Module) -> None:
    """All depthwise convolutions inside of it, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.__class__ = _in_float32(type(module))
