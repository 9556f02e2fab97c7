"""Weights of a Caffe2 ResNet (Detectron, and detectron2's `MSRA/R-50.pkl`) -> detectron2's."""

import re

import torch
from torch import Tensor

_CONV = re.compile(r"^(?:res_)?(conv1|res\d_\d+_branch(?:1|2[abc]))_(w|bn_(?:s|b|rm|riv))$")
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_ENDS = {
    "w": "weight",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
}


def is_caffe2(keys: set[str]) -> bool:
    """Whether these are names of a Caffe2 ResNet."""
    return "res2_0_branch2a_w" in keys


def caffe2_to_detectron2(key: str) -> str | None:
    """The name in detectron2's ResNet; None for all that is not of a ResNet's stages."""
    found = _CONV.match(key)
    if not found:
        return None
    layer, end = found[1], _ENDS[found[2]]
    if layer == "conv1":
        return f"stem.conv1.{end}"
    stage, block, branch = layer.split("_")
    return f"{stage}.{block}.{_BRANCHES[branch.removeprefix('branch')]}.{end}"


def convert_caffe2_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Weights of `backbone`.

    Most such files have their BatchNorm statistics folded into scale and bias; they get mean 0 and
    variance 1, as detectron2 gives them.
    """
    names = {key: caffe2_to_detectron2(key) for key in state_dict}
    converted = {f"backbone.{name}": state_dict[key] for key, name in names.items() if name}
    for name in list(converted):
        if name.endswith("norm.weight"):
            norm = name.removesuffix("weight")
            scale = converted[name]
            converted.setdefault(f"{norm}running_mean", torch.zeros_like(scale))
            converted.setdefault(f"{norm}running_var", torch.ones_like(scale))
    return converted
