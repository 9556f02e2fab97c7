"""What the weights of a model say about its config."""

import re
from collections.abc import Iterable

from torch import Tensor

from .class_rows import num_class_rows
from .project import is_dense, is_two_stage

_FIRST_CONVS = ("stem.conv1", "res2.0.conv1")
_RES4 = re.compile(r"\bres4\.(\d+)\.conv(\d)\.")


def config_values(state_dict: dict[str, Tensor]) -> dict[str, int | bool]:
    """
    Args:
        state_dict: under the names here.

    Returns:
        {config key: its value}, of the keys that the weights tell. Those of MODEL.DETR only where
        there is a head.
    """
    depth = _resnet_depth(state_dict)
    values = {} if depth is None else {"MODEL.RESNETS.DEPTH": depth}
    if not any(key.startswith("head.") for key in state_dict):
        return values
    dense = is_dense(state_dict)
    levels, width = (_size(state_dict, "head.transformer.level_embed", dim) for dim in (0, 1))
    if dense:
        levels, width = 1, _size(state_dict, "head.query_embed.weight", 1)
    head = {
        "TWO_STAGE": is_two_stage(state_dict),
        "NUM_FEATURE_LEVELS": levels,
        "NUM_CLASSES": num_class_rows(state_dict),
        "NUM_QUERIES": _size(state_dict, "head.query_embed.weight", 0),
        "ENC_LAYERS": _num_layers(state_dict, "head.transformer.encoder.layers."),
        "DEC_LAYERS": _num_layers(state_dict, "head.transformer.decoder.layers."),
        "HIDDEN_DIM": width,
        "DIM_FEEDFORWARD": _size(state_dict, "head.transformer.encoder.layers.0.linear1.bias", 0),
    }
    return values | {f"MODEL.DETR.{k}": v for k, v in head.items() if v is not None}


def has_usual_resnet(state_dict: dict[str, Tensor]) -> bool:
    """Whether the backbone is a ResNet of the widths that torchvision and timm have."""
    widths = [_size(state_dict, f"backbone.{conv}.weight", 0) for conv in _FIRST_CONVS]
    return "MODEL.RESNETS.DEPTH" in config_values(state_dict) and widths == [64, 64]


def has_indicator(state_dict: dict[str, Tensor]) -> bool:
    """Whether the content has a channel that tells denoising queries, which is not learned."""
    width = _size(state_dict, "head.query_embed.weight", 1)
    return width is not None and width < _size(state_dict, "head.transformer.level_embed", 1)


def _size(state_dict: dict[str, Tensor], key: str, dim: int) -> int | None:
    value = state_dict.get(key)
    return None if value is None or value.dim() <= dim else value.shape[dim]


def _num_layers(keys: Iterable[str], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)})


def _resnet_depth(keys: Iterable[str]) -> int | None:
    """By the stage that tells them apart; None for what is no ResNet of detectron2's."""
    found = [m for m in map(_RES4.search, keys) if m]
    deep = any(m[2] == "3" for m in found)
    return {2: 18, 6: 50 if deep else 34, 23: 101, 36: 152}.get(len({m[1] for m in found}))
