"""Which maps of a backbone a head reads, and how many channels they have."""

from collections.abc import Sequence

from ..errors import InputError
from ..toolbox import Backbone


def channels_of(backbone: Backbone, in_features: Sequence[str], name: str) -> list[int]:
    """
    Channels of the maps of a backbone that a head reads.

    Args:
        name: of the backbone, for messages.

    Raises:
        InputError: names those that the backbone does not give, and what it gives; also for maps
            that are not in order.
    """
    shapes = backbone.output_shape()
    if isinstance(in_features, str) or not in_features or not set(in_features) <= set(shapes):
        raise InputError(
            "in_features (MODEL.DETR.IN_FEATURES) must be a list of outputs of the backbone "
            f"{name}, which has {sorted(shapes)}, got {in_features!r}"
        )
    strides = [shapes[feature].stride for feature in in_features]
    if len(set(in_features)) < len(in_features) or strides != sorted(strides):
        raise InputError(
            "in_features (MODEL.DETR.IN_FEATURES) must go from high to low resolution, each once, "
            f"got {list(in_features)} with strides {strides}"
        )
    return [shapes[feature].channels for feature in in_features]
