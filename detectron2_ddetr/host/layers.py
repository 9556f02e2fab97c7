"""What a layer needs to know of its input."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """The size of a feature map, as far as it is known."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
