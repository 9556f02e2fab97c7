"""Layers of which nothing learns, computed by oneDNN on CPUs in fewer passes over their maps."""

import torch
from torch import Tensor, nn

from .backbones.deformable_resnet import DeformConv2d
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
            module.__class__ = OneDNNLinear
        elif isinstance(module, nn.Sequential):
            for before, block in zip([None, *module], module):
                if type(block) in _BLOCKS and all(map(_is_plain, block.children())):
                    # What another block gives to this alone may be overwritten.
                    block.owns_input = type(before) in _BLOCKS.values()
                    block.__class__ = _BLOCKS[type(block)]


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of both is for oneDNN's operators."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False  # which may leave this process, as the operators may not
    if x.device.type != "cpu" or x.requires_grad:  # they have no gradient
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != weight.dtype:
        return False  # an autocast around the caller's
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and _ops._is_mkldnn_bf16_supported()
    )


class OneDNNLinear(nn.Linear):
    """
    A linear layer of which nothing learns, computed by oneDNN on CPUs: with the bias in the
    product, where PyTorch first copies it to all rows of the result.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _takes(x, self.weight):
            return super().forward(x)
        x = x.to(self.weight.dtype)  # autocast does not know the operator
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class _OneDNNBlock(nn.Module):
    """
    A block of a ResNet, `conv1`, `conv2`, ... and `shortcut`, whose norms are a part of its
    convolutions: each of these with the ReLU behind it, the last with the sum as well.
    """

    owns_input: bool

    def forward(self, x: Tensor) -> Tensor:
        convolutions = [conv for name, conv in self.named_children() if name != "shortcut"]
        narrow = any(leaves_one_column(conv, x) for conv in convolutions)
        if narrow or not _takes(x, self.conv1.weight):
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
