"""What backbones look at that choose their own places: deformable convolutions, and DAT."""

from collections.abc import Iterator

import cv2
import numpy as np
from torch import Tensor, nn

from ...backbones.dat import DATBackbone
from ...backbones.deformable_resnet import DeformableBottleneck
from ..deformable_convolution import deformed_layers, draw_sampling_points
from ..deformed_keys import draw_deformed_keys
from .choice import Choice
from .view import View

#: Layers that points are followed through: 9 ** 3 = 729 of them.
_DEPTH = 3
#: Places in each direction among which one without an object is looked for.
_GRID = 24


def backbone_pictures(
    view: View, choice: Choice, backbone: nn.Module, pixels: Tensor, *, chosen: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """
    Names and pictures; none of a backbone without places of its own.

    Args:
        pixels: (3, H', W'), what the backbone reads of the image, normalised and not padded.
        chosen: whether the pixel of `choice` is what the user asked for.
    """
    if any(isinstance(module, DeformableBottleneck) for module in backbone.modules()):
        layers = deformed_layers(backbone, pixels)
        scale = pixels.shape[2] / view.image.shape[1], pixels.shape[1] / view.image.shape[0]
        picture = cv2.resize(view.image, tuple(pixels.shape[:0:-1]), interpolation=cv2.INTER_AREA)
        places = {"the pixel": choice.pixel} if chosen else places_of(view, choice)
        places = {name: (x * scale[0], y * scale[1]) for name, (x, y) in places.items()}
        depth = min(_DEPTH, len(layers))
        yield "convolution_points", draw_sampling_points(picture, layers, places, depth)
    for module in backbone.modules():
        if isinstance(module, DATBackbone):
            queries = list(places_of(view, choice).values())[:2]
            queries = [choice.pixel] if chosen else queries
            yield "deformed_keys", draw_deformed_keys(view.image, pixels, module, queries)


def places_of(view: View, choice: Choice) -> dict[str, tuple[float, float]]:
    """(x, y) px in the image of the largest and the smallest detection, and of none if there is."""
    height, width = view.image.shape[:2]
    boxes = view.boxes(view.captured.num_layers("decoder") - 1)[choice.detected]
    boxes = np.clip(boxes, 0, (width - 1, height - 1) * 2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    places = {"a large object": tuple(centres[areas.argmax()])}
    if areas.min() < areas.max():
        places["a small object"] = tuple(centres[areas.argmin()])
    steps = np.linspace(0.1, 0.9, _GRID)  # at the border half of the points would lie outside
    points = np.stack(np.meshgrid(steps * width, steps * height), axis=-1).reshape(-1, 1, 2)
    beyond = np.maximum(np.maximum(boxes[:, :2] - points, points - boxes[:, 2:]), 0)
    far = np.hypot(*np.moveaxis(beyond, -1, 0)).min(axis=1)  # from the nearest box
    if far.max() > 0:
        places["background"] = tuple(points[far.argmax(), 0])
    return places
