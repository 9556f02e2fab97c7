"""Boxes of which few pixels are left once images are resized."""

from typing import NamedTuple

import numpy as np

from ..toolbox import CfgNode
from .box_columns import BoxColumns

#: Sides of a square, px: two cells of a map of stride 8, the finest that the configs read.
FEW_PIXELS = 16


class Resizing(NamedTuple):
    """
    How large a config makes images.

    Attributes:
        key: of the short side.
        short: px, the largest of several; 0 leaves images as they are.
        longest: px that the long side is kept to.
    """

    key: str
    short: int
    longest: int

    @classmethod
    def of(cls, cfg: CfgNode, *, is_test: bool) -> "Resizing":
        """That of evaluation, or of training."""
        node = cfg.INPUT
        if is_test:
            return cls("INPUT.MIN_SIZE_TEST", node.MIN_SIZE_TEST, node.MAX_SIZE_TEST)
        sides = node.MIN_SIZE_TRAIN
        short = 0 if 0 in sides else max(sides, default=0)
        return cls("INPUT.MIN_SIZE_TRAIN", short, node.MAX_SIZE_TRAIN)

    def scales(self, sizes: np.ndarray) -> np.ndarray:
        """
        Args:
            sizes: (N, 2) of images that have pixels.

        Returns:
            (N,) how much larger they become.
        """
        if not self.short:
            return np.ones(len(sizes))
        return np.minimum(self.short / sizes.min(axis=1), self.longest / sizes.max(axis=1))


def warning_of_small(name: str, boxes: BoxColumns, sizes: np.ndarray, resizing: Resizing) -> str:
    """
    One line if most boxes of a data set have few pixels, or else "".

    Args:
        boxes: the usable ones.
        sizes: (N, 2) width and height of the images, px; 0, 0 of one that cannot be used.
    """
    boxes = boxes[(sizes[boxes.image] > 0).all(axis=1)]
    sides = np.sqrt(boxes.boxes[:, 2:].prod(axis=1)) * resizing.scales(sizes[boxes.image])
    few = int((sides < FEW_PIXELS).sum())
    if 2 * few <= len(boxes):
        return ""
    size = f"{resizing.key} {resizing.short}" if resizing.short else "their own size"
    return (
        f"data set {name!r}: in images of {size}, {few} of {len(boxes)} boxes are "
        f"smaller than {FEW_PIXELS} x {FEW_PIXELS} px (median side {np.median(sides):.2g} px), "
        "and little of them can be seen: make images larger, in training and in evaluation "
        "(INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, MIN_SIZE_TEST and MAX_SIZE_TEST)"
    )
