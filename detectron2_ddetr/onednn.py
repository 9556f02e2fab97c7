"""Layers of which nothing learns, computed by oneDNN on CPUs in fewer passes over their maps."""

import torch
from torch import Tensor, nn

from .backbones.deformable_resnet import DeformConv2d
from .modeling.linear import Linear, is_for_onednn
from .narrow_maps import leaves_one_column
from .toolbox import BasicBlock, BottleneckBlock

_ops = torch.ops.mkldnn


def use_onednn(model: nn.Module) -> None:
    """
    Changes a model of which nothing learns, in place.

    Not to other modules: one that occurs several times stays one.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif isinstance(module, nn.Sequential):
            for before, block in zip([None, *module], module):
                if type(block) in _BLOCKS and all(map(_is_plain, block.children())):
                    # What another block gives to this alone may be overwritten.
                    block.owns_input = type(before) in _BLOCKS.values()
                    block.__class__ = _BLOCKS[type(block)]


class _OneDNNBlock(nn.Module):
    """
    A block of a ResNet, `conv1`, `conv2`, ... and `shortcut`, whose norms are a part of its
    convolutions: each of these with the ReLU behind it, the last with the sum as well.
    """

    owns_input: bool

    def forward(self, x: Tensor) -> Tensor:
        convolutions = [conv for name, conv in self.named_children() if name != "shortcut"]
        narrow = any(leaves_one_column(conv, x) for conv in convolutions)
        # The operators have no gradient.
        if narrow or x.requires_grad or not is_for_onednn(x, self.conv1.weight):
            return super().forward(x)
        # Autocast does not know the operators, and a sum of maps that lie in another order is none
        # of oneDNN's.
        x = x.to(self.conv1.weight.dtype, memory_format=torch.channels_last)
        *first, last = convolutions
        out = x
        for conv in first:
            out = _ops._convolution_pointwise(out, *_arguments(conv), "relu", [], "")
        if self.shortcut is not None:
            x = _ops._convolution_pointwise(x, *_arguments(self.shortcut), "none", [], "")
        elif not self.owns_input:
            x = x.clone()
        sum_and_relu = ("add", 1.0, "relu", [], "")
        return _ops._convolution_pointwise_.binary(x, out, *_arguments(last), *sum_and_relu)


class OneDNNBasicBlock(_OneDNNBlock, BasicBlock):
    """Of two convolutions."""


class OneDNNBottleneckBlock(_OneDNNBlock, BottleneckBlock):
    """Of three."""


_BLOCKS = {BasicBlock: OneDNNBasicBlock, BottleneckBlock: OneDNNBottleneckBlock}


def _arguments(conv: nn.Conv2d) -> tuple:
    return conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups


def _is_plain(conv: nn.Module) -> bool:
    """Whether a convolution has no norm of its own and nothing behind it."""
    return (
        isinstance(conv, nn.Conv2d)
        and not isinstance(conv, DeformConv2d)
        and isinstance(conv.norm, nn.Identity)
        and getattr(conv, "activation", None) is None
        and conv.padding_mode == "zeros"
        and isinstance(conv.padding, tuple)
    )
