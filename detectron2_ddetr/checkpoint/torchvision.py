"""Weights of a torchvision ResNet -> those of a detectron2 ResNet."""

import re

from torch import Tensor


def torchvision_to_detectron2(key: str) -> str | None:
    """The name in detectron2's ResNet of a torchvision ResNet key; None for what it lacks."""
    if key.startswith("fc.") or key.endswith("num_batches_tracked"):
        return None
    key = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key)
    key = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", key)
    key = key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)


def convert_torchvision_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a torchvision ResNet classifier -> those of `backbone`."""
    names = {key: torchvision_to_detectron2(key) for key in state_dict}
    return {f"backbone.{name}": state_dict[key] for key, name in names.items() if name}
