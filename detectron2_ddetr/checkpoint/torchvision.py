"""Weights of a torchvision ResNet <-> those of a detectron2 ResNet."""

from torch import Tensor

from .renaming import Renaming, behind

_BLOCK = [
    *((f"conv{i}.", f"conv{i}.") for i in (1, 2, 3)),
    *((f"bn{i}.", f"conv{i}.norm.") for i in (1, 2, 3)),
    ("downsample.0.", "shortcut."),
    ("downsample.1.", "shortcut.norm."),
]
#: How names begin in a ResNet of torchvision, as timm has them too, and in one of detectron2.
TORCHVISION_TABLE = [("conv1.", "stem.conv1."), ("bn1.", "stem.conv1.norm.")]
for _stage in (1, 2, 3, 4):
    TORCHVISION_TABLE += behind(f"layer{_stage}.*.", f"res{_stage + 1}.*.", _BLOCK)
_NAMES = Renaming(TORCHVISION_TABLE)


def torchvision_to_detectron2(key: str) -> str | None:
    """
    The name in detectron2's ResNet of a torchvision ResNet key; None for what it lacks. A key that
    torchvision's does not have stays what it is.
    """
    if key.startswith("fc.") or key.endswith("num_batches_tracked"):
        return None
    return _NAMES.to_here(key) or key


def convert_torchvision_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a torchvision ResNet classifier -> those of `backbone`."""
    names = {key: torchvision_to_detectron2(key) for key in state_dict}
    return {f"backbone.{name}": state_dict[key] for key, name in names.items() if name}
