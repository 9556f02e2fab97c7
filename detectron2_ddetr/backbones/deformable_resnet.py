"""
A ResNet with deformable convolutions, for CPUs and GPUs.

detectron2 has them too (`DeformBottleneckBlock`), but needs its compiled extension, which trains on
GPUs only. The parts here have the same names, so that weights go from one to the other.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..modeling.ops.deform_conv import deform_conv2d
from ..toolbox import Backbone


class DeformConv2d(nn.Conv2d):
    """:func:`deform_conv2d` with the weight of a convolution, followed by its `norm`."""

    def __init__(self, conv: nn.Conv2d):
        """
        Args:
            conv: without a bias, with a `norm` (or None), as detectron2's Conv2d. Both are taken.
        """
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=False,
        )
        self.weight, self.norm = conv.weight, conv.norm

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`deform_conv2d`."""
        y = deform_conv2d(
            x,
            offset,
            self.weight,
            mask,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return y if self.norm is None else self.norm(y)


class DeformableBottleneck(nn.Module):
    """
    A bottleneck block whose 3x3 convolution is deformable: `conv2_offset` tells where it reads.

    It begins as the block that it is made of, since the offsets begin at zero; with a modulation,
    which begins at sigmoid(0), with half the output of that convolution.
    """

    def __init__(self, block: nn.Module, *, modulated: bool, num_groups: int):
        """
        Args:
            block: a bottleneck with `conv1`, `conv2`, `conv3` and `shortcut`, which are taken.
            modulated: v2.
            num_groups: into so many groups of channels, each with its offsets, `conv2` reads.
        """
        super().__init__()
        conv = block.conv2
        taps = num_groups * conv.kernel_size[0] * conv.kernel_size[1]
        #: Of `conv2_offset`: offsets, and with a modulation its logits.
        self.channels = [2 * taps, taps] if modulated else [2 * taps]
        self.shortcut, self.conv1 = block.shortcut, block.conv1
        self.conv2_offset = nn.Conv2d(
            conv.in_channels,
            sum(self.channels),
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
        )
        for parameter in self.conv2_offset.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(conv.weight.requires_grad)  # not in a stage that is frozen
        self.conv2, self.conv3 = DeformConv2d(conv), block.conv3

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        offset, *logits = self.conv2_offset(out).split(self.channels, dim=1)
        out = F.relu_(self.conv2(out, offset, logits[0].sigmoid() if logits else None))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


def with_deformable_convolutions(
    backbone: Backbone, stages: Sequence[str], *, modulated: bool = False, num_groups: int = 1
) -> Backbone:
    """
    Args:
        backbone: a ResNet of bottlenecks, of detectron2 or of the embedded host; it is changed.
        stages: those whose 3x3 convolutions become deformable, such as ["res3", "res4", "res5"].
        modulated, num_groups: see :class:`DeformableBottleneck`.

    Returns:
        `backbone`.

    Raises:
        InputError: when the channels of a stage make no such groups.
    """
    for name in stages:
        stage = backbone.get_submodule(name)
        for i, block in enumerate(stage):
            channels = block.conv2.in_channels
            if num_groups < 1 or channels % num_groups:
                raise InputError(
                    f"num_groups (MODEL.RESNETS.DEFORM_NUM_GROUPS) is {num_groups}, which does not "
                    f"divide the {channels} channels of the convolutions in {name}"
                )
            stage[i] = DeformableBottleneck(block, modulated=modulated, num_groups=num_groups)
    return backbone
