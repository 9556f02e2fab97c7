"""Weights of DAT and DAT++ as the authors publish them, trained on ImageNet -> those here."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

#: Made anew from the sizes of windows and maps.
_CONSTANT = re.compile(r"\.(relative_position_index|attn_mask)$")
_CLASSIFIER = re.compile(r"^cls_(norm|head)\.")
_NORM_OF_OUTPUT = re.compile(r"^norms\.\d\.norm\.(weight|bias)$")


def is_dat(state_dict: dict[str, Tensor]) -> bool:
    return {"patch_proj.0.weight", "stages.0.layer_norms.0.norm.weight"} <= state_dict.keys()


def convert_dat(
    state_dict: dict[str, Tensor], expected: dict[str, Tensor], root: str = ""
) -> dict[str, Tensor]:
    """
    Args:
        state_dict: the entry "model" of a file.
        expected: of a :class:`DATClassifier` or :class:`DATBackbone`, or of a model that has one.
        root: how the names of its tensors begin in `expected`.

    Returns:
        The tensors that `expected` has, tables of biases stretched to its sizes. The norms of the
        outputs, which detection adds, begin as they are made where the weights have none.
    """
    own = {k.removeprefix(root): v for k, v in expected.items() if k.startswith(root)}
    converted = {}
    for key, value in state_dict.items():
        if _CONSTANT.search(key) or (_CLASSIFIER.match(key) and key not in own):
            continue
        if key in own and value.shape != own[key].shape:
            value = _stretched(key, value, own[key].shape)
        converted[f"{root}{key}"] = value
    for key, value in own.items():
        if (norm := _NORM_OF_OUTPUT.match(key)) and key not in state_dict:
            make = torch.ones if norm[1] == "weight" else torch.zeros
            converted[f"{root}{key}"] = make(value.shape)
    return converted


def _stretched(key: str, table: Tensor, shape: torch.Size) -> Tensor:
    """Tables of biases by displacement as the authors stretch them for images of another size."""
    if key.endswith(".rpe_table") and table.dim() == len(shape) and len(table) == shape[0]:
        return F.interpolate(table[None], shape[1:], mode="bicubic")[0]
    if key.endswith(".relative_position_bias_table") and table.shape[1] == shape[1]:
        before, after = (round(n**0.5) for n in (len(table), shape[0]))
        square = table.T.unflatten(1, (before, before))[None]
        return F.interpolate(square, (after, after), mode="bicubic")[0].flatten(1).T
    return table
