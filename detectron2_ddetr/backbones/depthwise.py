"""Depthwise convolutions in bfloat16 on CPUs."""

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


def learn_in_float32(network: nn.Module) -> None:
    """All depthwise convolutions inside of it, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            kind = type(module)
            module.__class__ = type(kind.__name__, (_InFloat32, kind), {})
