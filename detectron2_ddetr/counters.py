"""
fvcore's counters of FLOPs and activations know the operator, and so do detectron2's, made of them;
dense attention too, which fvcore knows only in the form that has the products one by one, and
deformable convolution.

They take their handles from these two dicts; another way in there is not, since detectron2's tools
make the counters themselves.
"""

from typing import Any

from fvcore.nn.activation_count import _DEFAULT_SUPPORTED_OPS as _ACTIVATIONS
from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as _FLOPS
from fvcore.nn.jit_handles import generic_activation_jit, get_shape

from .modeling.ops.flops import deform_conv_multiply_adds, dense_multiply_adds, multiply_adds

#: The entry that traced programs have.
_OPERATOR = "detectron2_ddetr::ms_deform_attn"
_DENSE = "aten::scaled_dot_product_attention"
_DEFORM_CONV = "torchvision::deform_conv2d"


def _flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Of the values of a traced graph; fvcore takes a multiplication and an addition for one."""
    value, _, _, attention_weights = map(get_shape, inputs)
    return multiply_adds(value, attention_weights)


def _dense_flops(inputs: list[Any], outputs: list[Any]) -> int:
    return dense_multiply_adds(*map(get_shape, inputs[:3]))


def _deform_conv_flops(inputs: list[Any], outputs: list[Any]) -> int:
    return deform_conv_multiply_adds(*map(get_shape, inputs[:3]))


_HANDLES = {_OPERATOR: _flops, _DENSE: _dense_flops, _DEFORM_CONV: _deform_conv_flops}
for _operator, _handle in _HANDLES.items():
    _FLOPS[_operator] = _handle
    _ACTIVATIONS[_operator] = generic_activation_jit()
