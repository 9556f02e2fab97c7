"""
fvcore's counters of FLOPs and activations know the operator, and so do detectron2's, made of them.

They take their handles from these two dicts; another way in there is not, since detectron2's tools
make the counters themselves.
"""

from typing import Any

from fvcore.nn.activation_count import _DEFAULT_SUPPORTED_OPS as _ACTIVATIONS
from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as _FLOPS
from fvcore.nn.jit_handles import generic_activation_jit, get_shape

from .modeling.ops.flops import multiply_adds

#: The entry that traced programs have.
_OPERATOR = "detectron2_ddetr::ms_deform_attn"


def _flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Of the values of a traced graph; fvcore takes a multiplication and an addition for one."""
    value, _, _, attention_weights = map(get_shape, inputs)
    return multiply_adds(value, attention_weights)


_FLOPS[_OPERATOR] = _flops
_ACTIVATIONS[_OPERATOR] = generic_activation_jit()
