"""Augmentations: policies that look at an image and choose a deterministic transform."""

import numpy as np
from fvcore.transforms.transform import *  # noqa: F401,F403  as detectron2 does
from fvcore.transforms.transform import (
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image


class ResizeTransform(Transform):
    """Resize a uint8 image (h, w) to (new_h, new_w) with PIL."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), f"{img.shape[:2]} is not {(self.h, self.w)}"
        return np.asarray(Image.fromarray(img).resize((self.new_w, self.new_h), Image.BILINEAR))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords


class AugInput:
    """An image (H, W[, C])."""

    def __init__(self, image: np.ndarray):
        self.image = image


class Augmentation:
    """Subclasses implement `get_transform(image)`, which returns a transform."""

    def __call__(self, aug_input: AugInput) -> Transform:
        tfm = self.get_transform(aug_input.image)
        aug_input.image = tfm.apply_image(aug_input.image)
        return tfm

    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"


class AugmentationList(Augmentation):
    """Augmentations, one after another."""

    def __init__(self, augs: list[Augmentation]):
        self.augs = augs

    def __call__(self, aug_input: AugInput) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])


class RandomFlip(Augmentation):
    """Flip with probability `prob`, either horizontally or vertically."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise ValueError(f"choose one of horizontal ({horizontal}) and vertical ({vertical})")
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if np.random.uniform() < self.prob:
            return HFlipTransform(w) if self.horizontal else VFlipTransform(h)
        return NoOpTransform()
