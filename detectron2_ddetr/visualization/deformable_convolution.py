"""Where deformable convolutions read an image: the points of several layers, followed backwards."""

import contextlib
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.deformable_resnet import DeformableBottleneck
from ..errors import InputError
from .drawing import MARGIN, text_lines

#: (r, g, b): of Okabe and Ito.
_POINT, _PLACE = (213, 94, 0), (0, 158, 115)
_STEM_STRIDE = 4


class DeformedLayer(NamedTuple):
    """
    A deformable convolution on an image.

    Attributes:
        name: of its block in the backbone.
        offset: (2 G T, H', W'), (dy, dx) of each tap, in cells of its input.
        conv: the layer.
        stride: px of the image from one cell of the block's input to the next.
        stride_1x1: of the convolution between that and the input of `conv`.
    """

    name: str
    offset: Tensor
    conv: nn.Conv2d
    stride: int
    stride_1x1: int


@torch.no_grad()
def deformed_layers(backbone: nn.Module, image: Tensor) -> list[DeformedLayer]:
    """
    Args:
        backbone: a ResNet with deformable convolutions.
        image: (3, H, W), normalised.

    Returns:
        Its deformable convolutions in order, with their offsets on that image.

    Raises:
        InputError: when it has none.
    """
    blocks, stride = {}, _STEM_STRIDE
    for name, block in backbone.named_modules():
        if isinstance(block, DeformableBottleneck):
            blocks[name] = block, stride
        if hasattr(block, "conv3"):  # a bottleneck, deformable or not
            stride *= block.conv1.stride[0] * block.conv2.stride[0]
    if not blocks:
        raise InputError(
            "the backbone has no deformable convolutions (MODEL.RESNETS.DEFORM_ON_PER_STAGE) "
            "whose points could be drawn"
        )
    outputs: dict[nn.Module, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for block, _ in blocks.values():
            hook = block.conv2_offset.register_forward_hook(
                lambda layer, _, output: outputs.update({layer: output[0]})
            )
            hooks.callback(hook.remove)
        backbone(image[None])
    return [
        DeformedLayer(
            name,
            outputs[block.conv2_offset][: block.channels[0]].float().cpu(),
            block.conv2,
            stride,
            block.conv1.stride[0],
        )
        for name, (block, stride) in blocks.items()
    ]


def sampling_points(
    layers: list[DeformedLayer], place: tuple[float, float], depth: int = 3, group: int = 0
) -> np.ndarray:
    """
    The points of the image that one cell after the last layer depends on through the taps of the
    last `depth` deformable convolutions, without the shortcuts around them.

    A tap of a layer lies between cells of the layer before, which has offsets in cells only: those
    of the nearest one are taken.

    Args:
        layers: see :func:`deformed_layers`; the last `depth` must follow one another.
        place: (x, y) px of the image; the nearest cell is taken.
        group: of the offsets.

    Returns:
        (9 ** depth, 2), (x, y) px of the image; some may lie outside.

    Raises:
        InputError: when there are no such layers.
    """
    if not 0 < depth <= len(layers):
        raise InputError(f"{len(layers)} deformable convolutions have no last {depth}")
    last = layers[-1]
    # Cell i of a map of that stride is centred on pixel i * stride, whose centre is at + 1/2.
    stride = last.stride * last.stride_1x1 * last.conv.stride[0]
    cell = np.array([place[1], place[0]]) - 0.5
    points = np.round(cell / stride)[None]  # (y, x), in cells
    points = np.clip(points, 0, np.array(last.offset.shape[1:]) - 1)
    for layer in reversed(layers[-depth:]):
        points = _before(layer, points, group)
    return points[:, ::-1] * layers[-depth].stride + 0.5


def _before(layer: DeformedLayer, points: np.ndarray, group: int) -> np.ndarray:
    """(P, 2), (y, x) in cells of the output -> (P * T, 2) in cells of the block's input."""
    height, width = layer.conv.kernel_size
    taps = np.array(list(itertools.product(range(height), range(width))))  # (T, 2), row by row
    offset = layer.offset.unflatten(0, (-1, len(taps), 2))[group].numpy()  # (T, 2, H', W')
    rows, columns = np.clip(np.round(points).astype(int), 0, np.array(offset.shape[2:]) - 1).T
    moved = offset[:, :, rows, columns].transpose(2, 0, 1)  # (P, T, 2)
    start = points * layer.conv.stride - layer.conv.padding
    read = start[:, None] + taps * layer.conv.dilation + moved
    return read.reshape(-1, 2) * layer.stride_1x1


def draw_sampling_points(
    picture: np.ndarray,
    layers: list[DeformedLayer],
    places: Mapping[str, tuple[float, float]],
    depth: int = 3,
) -> np.ndarray:
    """
    Args:
        picture: (H, W, 3) uint8 RGB, the image of `layers` without its normalisation.
        layers, depth: see :func:`sampling_points`.
        places: (x, y) px by what is there, such as "a small object".

    Returns:
        (H', W', 3) uint8 RGB: a panel for each place, with its name above, a cross where it is and
        a dot for each point inside the image.
    """
    side = max(picture.shape[:2])
    size, panels = max(12, side // 36), []
    for name, place in places.items():
        points = sampling_points(layers, place, depth)
        panel = picture.copy()
        height, width = panel.shape[:2]
        inside = ((points >= 0) & (points < (width, height))).all(1)
        for x, y in np.floor(points[inside]).astype(int).tolist():
            cv2.circle(panel, (x, y), max(1, side // 250) + 1, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(panel, (x, y), max(1, side // 250), _POINT, -1, cv2.LINE_AA)
        centre, arm = tuple(int(v) for v in place), max(4, side // 40)
        for color, thickness in (((255, 255, 255), side // 100 + 3), (_PLACE, side // 150 + 1)):
            cv2.drawMarker(panel, centre, color, cv2.MARKER_CROSS, 2 * arm, thickness)
        title = f"{name}: {inside.sum()} of {len(points)} points lie in the image"
        panels.append(np.concatenate([text_lines(title, width, size, left=0), panel]))
    tallest = max(len(panel) for panel in panels)
    gap = np.full((tallest, MARGIN, 3), 255, dtype=np.uint8)
    row = []
    for panel in panels:
        above = np.full((tallest - len(panel), *panel.shape[1:]), 255, dtype=np.uint8)
        row += [gap, np.concatenate([above, panel])]
    body = np.concatenate([*row, gap], axis=1)
    names = ", ".join(layer.name for layer in layers[-depth:])
    title = (
        f"Where the deformable convolutions of {names} read for one place (cross): each tap "
        "followed backwards through its offsets"
    )
    return np.concatenate([text_lines(title, body.shape[1], size), body])
