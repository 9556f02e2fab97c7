"""Augmentations: policies that look at an image and choose a deterministic transform."""

import inspect
import sys

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import (  # noqa: F401
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image


class ResizeTransform(Transform):
    """Resize (h, w) to (new_h, new_w): PIL for uint8, torch for floats."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), f"{img.shape[:2]} is not {(self.h, self.w)}"
        interp = self.interp if interp is None else interp
        shape = (self.new_h, self.new_w, *img.shape[2:])
        if img.dtype == np.uint8:
            pil = Image.fromarray(img[:, :, 0] if img.shape[2:] == (1,) else img)
            return np.asarray(pil.resize((self.new_w, self.new_h), interp)).reshape(shape)
        mode = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}
        tensor = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        corners = None if interp == Image.NEAREST else False
        tensor = tensor.permute(2, 0, 1)[None]  # (1, C, H, W)
        size = (self.new_h, self.new_w)
        tensor = F.interpolate(tensor, size, mode=mode[interp], align_corners=corners)
        return tensor[0].permute(1, 2, 0).reshape(shape).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class AugInput:
    """An image (H, W[, C]) and what changes with it; boxes are (N, 4) xyxy pixels."""

    def __init__(self, image: np.ndarray, *, boxes=None, sem_seg=None):
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform everything in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


class Augmentation:
    """Subclasses implement `get_transform`; its argument names say what it wants to see."""

    def _init(self, params: dict) -> None:
        skip = ("self", "__class__")
        self.__dict__.update({k: v for k, v in params.items() if k not in skip})

    def get_transform(self, *args) -> Transform:
        raise NotImplementedError

    def __call__(self, aug_input: AugInput) -> Transform:
        names = list(inspect.signature(self.get_transform).parameters)
        names = ["image"] if len(names) == 1 else names
        tfm = self.get_transform(*[getattr(aug_input, name) for name in names])
        assert isinstance(tfm, Transform), f"{type(self)} returned {type(tfm)}"
        aug_input.transform(tfm)
        return tfm

    def _rand_range(self, low: float = 1.0, high: float | None = None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        params = inspect.signature(type(self).__init__).parameters.items()
        known = {k: getattr(self, k, p.default) for k, p in params if k != "self"}
        shown = (f"{k}={v!r}" for k, v in known.items() if v is not dict(params)[k].default)
        return f"{type(self).__name__}({', '.join(shown)})"


class AugmentationList(Augmentation):
    """Augmentations and transforms, one after another."""

    def __init__(self, augs: list):
        self.augs = augs

    def __call__(self, aug_input: AugInput) -> TransformList:
        tfms = []
        for aug in self.augs:
            if isinstance(aug, Transform):
                aug_input.transform(aug)
            tfms.append(aug if isinstance(aug, Transform) else aug(aug_input))
        return TransformList(tfms)


class RandomFlip(Augmentation):
    """Flip with probability `prob`, either horizontally or vertically."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise ValueError(f"choose one of horizontal ({horizontal}) and vertical ({vertical})")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self._rand_range() < self.prob:
            return HFlipTransform(w) if self.horizontal else VFlipTransform(h)
        return NoOpTransform()


class ResizeShortestEdge(Augmentation):
    """
    Resize the shorter edge to a random length, but the longer edge to at most `max_size`.

    `short_edge_length` is [min, max] for the sample style "range", else a list of lengths.
    """

    def __init__(
        self,
        short_edge_length: int | tuple[int, ...],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ):
        assert sample_style in ("range", "choice"), sample_style
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        assert sample_style == "choice" or len(short_edge_length) == 2, short_edge_length
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self.sample_style == "range":
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_h, new_w = self.get_output_shape(h, w, size, self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Return the new (height, width)."""
        scale = short_edge_length * 1.0 / min(oldh, oldw)
        newh, neww = scale * oldh, scale * oldw
        newh, neww = (short_edge_length, neww) if oldh < oldw else (newh, short_edge_length)
        if max(newh, neww) > max_size:
            scale = max_size * 1.0 / max(newh, neww)
            newh, neww = newh * scale, neww * scale
        return int(newh + 0.5), int(neww + 0.5)
