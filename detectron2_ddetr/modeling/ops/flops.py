"""
How much the operators compute, for counters of FLOPs. Importing this tells PyTorch's.

A sample reads four cells of D channels: 4 D multiplications, each with an addition. What depends on
no channel (locations, softmax, weights of the four cells) is left out, as counters leave out
element-wise functions. Each of the two parts of a gradient, by values and by samples, is as much.
"""

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from . import deform_conv, ms_deform_attn  # noqa: F401  (define the operators)

_ops = torch.ops.detectron2_ddetr


def multiply_adds(value: Sequence[int], weights: Sequence[int]) -> int:
    """
    Of the forward pass.

    Args:
        value: shape of the value, (N, S, M, D).
        weights: shape of attention weights or logits, (N, Q, M, L, P) or (N, Q, M, K).
    """
    return 4 * value[3] * math.prod(weights)


def dense_multiply_adds(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """
    Of scaled dot products and of the sums that they weight.

    Args:
        query, key, value: shapes, (..., Q, D), (..., S, D) and (..., S, D'); the first axes are
            those of the query.
    """
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def deform_conv_multiply_adds(
    x: Sequence[int], weight: Sequence[int], offset: Sequence[int]
) -> int:
    """
    Of a deformable convolution: a tap reads four cells of all C channels, then comes the weight.

    Args:
        x, weight, offset: shapes, see :func:`.deform_conv.deform_conv2d`.
    """
    positions = offset[0] * math.prod(offset[2:])
    return positions * (4 * x[1] * math.prod(weight[2:]) + math.prod(weight))


# PyTorch's counter takes a multiplication and an addition for two.

# It knows dense attention as GPUs compute it, and not by the name that CPUs have for the same.
for _pass in ("", "_backward"):
    _name = "_scaled_dot_product_flash_attention"
    _on_gpus, _on_cpus = (f"{_name}{device}{_pass}" for device in ("", "_for_cpu"))
    flop_registry.setdefault(
        getattr(torch.ops.aten, _on_cpus), flop_registry[getattr(torch.ops.aten, _on_gpus)]
    )


if torch.backends.mkldnn.is_available():  # what our linear layers are on CPUs

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear_flops(x, weight, *_, **__):
        return 2 * math.prod(x) * weight[0]


@register_flop_formula(_ops.ms_deform_attn)
def _flops(value, spatial_shapes, sampling_locations, attention_weights, *_, **__):
    return 2 * multiply_adds(value, attention_weights)


@register_flop_formula(_ops.ms_deform_attn_fused)
def _fused_flops(value, shapes, points, references, offsets, attention_logits, *_, **__):
    return 2 * multiply_adds(value, attention_logits)


@register_flop_formula(_ops.ms_deform_attn_backward)
def _backward_flops(
    grad_output, value, spatial_shapes, locations, weights, needs_value, *needs, **__
):
    parts = needs_value + any(needs[:2])
    return parts * 2 * multiply_adds(value, weights)


@register_flop_formula(_ops.ms_deform_attn_fused_backward)
def _fused_backward_flops(
    grad_output, value, shapes, points, references, offsets, logits, needs_value, *needs, **__
):
    parts = needs_value + any(needs[:3])
    return parts * 2 * multiply_adds(value, logits)


@register_flop_formula(torch.ops.torchvision.deform_conv2d)
def _deform_conv_flops(x, weight, offset, *_, **__):
    return 2 * deform_conv_multiply_adds(x, weight, offset)


@register_flop_formula(torch.ops.torchvision._deform_conv2d_backward)
def _deform_conv_backward_flops(grad_output, x, weight, offset, *_, **__):
    return 2 * 2 * deform_conv_multiply_adds(x, weight, offset)  # all of it, whatever is needed
