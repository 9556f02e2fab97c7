"""Gradients of the weights of convolutions, in another way where oneDNN's is slow."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .toolbox import Conv2d

#: Numbers of the map of one image from which this pays: 1 MB in float32, about what a core's own
#: cache holds.
_LARGE = 2**18


def quicken_weight_gradients(model: nn.Module) -> None:
    """
    Changes how convolutions compute the gradient of their weight, and nothing else, in float32
    training on processors with AVX2 and without AVX-512. There oneDNN takes 2 to 10 times as long
    for it as it could, of large maps, if channels are last, which is faster for all else:

    * of a kernel of several cells; channels first is the fast way;
    * of a 1x1 kernel with a stride that does not divide height and width; a product of matrices is.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return
    for module in model.modules():
        # Not what is derived of them, which may take other inputs.
        if type(module) in (nn.Conv2d, Conv2d) and _has_plain_geometry(module):
            module.forward = functools.partial(_forward, module)


def _has_plain_geometry(conv: nn.Conv2d) -> bool:
    if conv.groups > 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    if max(conv.kernel_size) > 1:
        return True
    return max(conv.stride) > 1 and max(conv.padding) == 0


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if not _is_slow(conv, x):
        return type(conv).forward(conv, x)
    x = _Convolution.apply(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
    return after_convolution(conv, x)


def after_convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What a module does after its convolution gave `x`: detectron2's have a norm and a ReLU."""
    for name in ("norm", "activation"):
        layer = getattr(conv, name, None)
        x = x if layer is None else layer(x)
    return x


def _is_slow(conv: nn.Conv2d, x: Tensor) -> bool:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    whole = all(size % stride == 0 for size, stride in zip(x.shape[2:], conv.stride))
    large = x.shape[1:].numel() >= _LARGE
    return large and conv.weight.requires_grad and (max(conv.kernel_size) > 1 or not whole)


class _Convolution(torch.autograd.Function):
    """`F.conv2d` of (N, C, H, W), a weight (C', C, h, w) and a bias (C',) or None."""

    @staticmethod
    def forward(x, weight, bias, stride, padding, dilation):
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad

        def gradients(grad_output, x, *needed):
            return torch.ops.aten.convolution_backward(
                grad_output, x, weight, None, stride, padding, dilation, False, [0, 0], 1, needed
            )

        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x, _, _ = gradients(grad_output, x, True, False, False)
        if needs_weight and weight[0, 0].numel() > 1:
            grads, maps = grad_output.contiguous(), x.contiguous()
            _, grad_weight, _ = gradients(grads, maps, False, True, False)
        elif needs_weight:
            read = x[:, :, :: stride[0], :: stride[1]]
            grads, cells = (t.movedim(1, -1).flatten(0, 2) for t in (grad_output, read))
            grad_weight = (grads.T @ cells).view_as(weight)
        if needs_bias:
            grad_bias = grad_output.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None
