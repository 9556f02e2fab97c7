"""Layers that are frozen before anything has filled them would stay random for ever."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def watch_loading(model: nn.Module) -> None:
    """
    From now on each layer knows whether weights were loaded into it, whoever loads them and into
    whichever part of the model.
    """
    for module in model.modules():
        if isinstance(module, _LAYERS):
            module.register_load_state_dict_pre_hook(_note)


def _note(layer: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if any(key.startswith(f"{prefix}weight") for key in state_dict):
        layer.weight_was_loaded = True


def check_frozen_layers(model: nn.Module) -> None:
    """
    Args:
        model: that :func:`watch_loading` was called for.

    Raises:
        InputError: if it has frozen layers that nothing has filled.
    """
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, _LAYERS)
        and not layer.weight.requires_grad
        and not getattr(layer, "weight_was_loaded", False)
        and not getattr(layer, "is_unread", False)
        and not _norms_are_trained(model, name)
    ]
    if names:
        raise InputError(
            f"{len(names)} frozen layers, the first {names[0]}, would stay random for ever: they "
            "are not trained, and nothing was loaded into them. MODEL.WEIGHTS is empty, or what it "
            "names has no such layers. Set it to weights of this backbone, or set "
            "MODEL.BACKBONE.FREEZE_AT 0 to train from scratch"
        )


def _norms_are_trained(model: nn.Module, name: str) -> bool:
    """
    Whether the norms nearest to a layer show that it was filled before it came here.

    Every fresh norm has the same weight and the same bias for all channels.
    """
    words = name.split(".")
    for depth in range(len(words), 0, -1):
        around = model.get_submodule(".".join(words[:depth]))
        norms = [
            (module.weight, module.bias)
            for module in around.modules()
            if not isinstance(module, _LAYERS)
            and all(_is_vector(getattr(module, key, None)) for key in ("weight", "bias"))
        ]
        if norms:
            return any(bool((x != x[0]).any()) for pair in norms for x in pair)
    return False


def _is_vector(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 1
