"""Geometric augmentation of Deformable DETR, as detectron2 augmentations."""

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from ..errors import InputError
from ..toolbox import CfgNode, T

RESIZE_RULES = ("truncate", "round")


def resized_shape(
    height: int, width: int, short_side: int, max_size: int | None, rule: str
) -> tuple[int, int]:
    """
    Size of an image after its short side was resized.

    Args:
        height, width: size of the image, px.
        short_side: wanted length of the short side, px.
        max_size: limit of the long side, px; None for no limit.
        rule: "truncate" limits the short side first, rounds it half to even, and cuts the fraction
            of the long side (the official code: 480 x 640 becomes 800 x 1066), which may exceed
            `max_size` by half its ratio to the short side; images longer than about 32:1 end at
            `max_size`. "round" scales both sides and rounds half up (detectron2's
            ResizeShortestEdge: 800 x 1067).

    Returns:
        (height, width), px, height first.
    """
    short, long = min(height, width), max(height, width)
    if rule == "truncate":
        if max_size is not None and long / short * short_side > max_size:
            short_side = round(max_size * short / long)
        short_side = max(short_side, 1)
        new_short, new_long = short_side, int(short_side * long / short)
        if short == short_side:
            new_long = long
        # Differs from the official code: where rounding the short side to whole pixels would move
        # the long one by more than a few percent, the long one ends at its limit.
        if max_size is not None and short_side < max(16, max_size / 32):
            new_long = min(new_long, max_size)
    elif rule == "round":
        scaled_short, scaled_long = float(short_side), short_side / short * long
        if max_size is not None and scaled_long > max_size:
            shrink = max_size / scaled_long
            scaled_short, scaled_long = scaled_short * shrink, scaled_long * shrink
        new_short, new_long = max(int(scaled_short + 0.5), 1), int(scaled_long + 0.5)
    else:
        raise InputError(f"INPUT.RESIZE_RULE must be one of {RESIZE_RULES}, got {rule!r}")
    return (new_short, new_long) if height <= width else (new_long, new_short)


class ResizeShortSide(T.Augmentation):
    """Resizes the short side to one of several lengths, drawn uniformly (PIL bilinear)."""

    def __init__(self, short_sides: Sequence[int], max_size: int | None, rule: str = "truncate"):
        """
        Args:
            short_sides: lengths to choose from, px. A drawn 0 means "leave the size alone".
            max_size: limit of the long side, px; None for no limit.
            rule: see :func:`resized_shape`.
        """
        super().__init__()
        if rule not in RESIZE_RULES:
            raise InputError(f"INPUT.RESIZE_RULE must be one of {RESIZE_RULES}, got {rule!r}")
        if not short_sides:
            raise InputError(
                "ResizeShortSide needs at least one short side, got none (INPUT.MIN_SIZE_TRAIN, or "
                "INPUT.CROP_RESIZE_SIZES)"
            )
        self.short_sides = tuple(short_sides)
        self.max_size = max_size
        self.rule = rule

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """`image` is (H, W, 3) or (H, W)."""
        height, width = image.shape[:2]
        short_side = int(np.random.choice(self.short_sides))
        if short_side == 0:
            return T.NoOpTransform()
        shape = resized_shape(height, width, short_side, self.max_size, self.rule)
        return T.ResizeTransform(height, width, *shape)


class RandomFlipBoth(T.Augmentation):
    """Mirrors left and right, and top and bottom, each with probability 0.5."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """`image` is (H, W, 3) or (H, W)."""
        height, width = image.shape[:2]
        horizontal, vertical = np.random.uniform(size=2) < 0.5
        # Top and bottom first: fvcore does not read the mirror image of a single column.
        flips = [T.VFlipTransform(height)] * int(vertical)
        return T.TransformList(flips + [T.HFlipTransform(width)] * int(horizontal))


class RandomResizedCrop(T.Augmentation):
    """With probability `prob`: resizes the short side, then cuts out a window of random size."""

    def __init__(
        self,
        short_sides: Sequence[int],
        crop_range: tuple[int, int],
        prob: float = 0.5,
        rule: str = "truncate",
    ):
        """
        Args:
            short_sides: lengths of the short side before the cut, px; the long side has no limit.
            crop_range: shortest and longest side of the window, px, both included. Width and height
                are drawn independently; the window's place is uniform.
            prob: probability of doing anything.
            rule: see :func:`resized_shape`.
        """
        super().__init__()
        whole = all(isinstance(side, Integral) for side in crop_range)
        if not whole or len(crop_range) != 2 or not 0 < crop_range[0] <= crop_range[1]:
            raise InputError(
                "INPUT.CROP.SIZE must be (shortest, longest), whole numbers of px, got "
                f"{crop_range}"
            )
        self.short_sides = tuple(short_sides)
        self.crop_range = tuple(crop_range)
        self.prob = prob
        self.rule = rule
        self._resize = ResizeShortSide(short_sides, None, rule)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """`image` is (H, W, 3) or (H, W)."""
        if np.random.random_sample() >= self.prob:
            return T.NoOpTransform()
        resize = self._resize.get_transform(image)
        height, width = image.shape[:2]
        if isinstance(resize, T.ResizeTransform):
            height, width = resize.new_h, resize.new_w
        crop_width = self._draw_side(width)
        crop_height = self._draw_side(height)
        top = np.random.randint(0, height - crop_height + 1)
        left = np.random.randint(0, width - crop_width + 1)
        crop = T.CropTransform(left, top, crop_width, crop_height, orig_w=width, orig_h=height)
        return T.TransformList([resize, crop])

    def _draw_side(self, side: int) -> int:
        """Length of the window along a side of `side` px."""
        shortest, longest = (min(limit, side) for limit in self.crop_range)
        # Differs from the official code: a side shorter than the shortest window is taken whole,
        # because the official draw has an empty range there and crashes.
        return np.random.randint(shortest, longest + 1)


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """
    The augmentations that `cfg.INPUT` asks for, in the order in which they are applied.

    Training: flip, in one direction or in each of both; with probability 0.5 (if
    INPUT.CROP.ENABLED) resize to one of CROP_RESIZE_SIZES and crop; resize to one of
    MIN_SIZE_TRAIN. Testing: resize to MIN_SIZE_TEST.
    """
    rule = cfg.INPUT.RESIZE_RULE
    if not is_train:
        return [ResizeShortSide((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, rule)]
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING != "choice":
        raise InputError(
            "INPUT.MIN_SIZE_TRAIN_SAMPLING must be 'choice', got "
            f"{cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING!r}; list the lengths in INPUT.MIN_SIZE_TRAIN"
        )
    augmentations: list[T.Augmentation] = []
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "vertical", "both", "none"):
        raise InputError(
            f"INPUT.RANDOM_FLIP must be horizontal, vertical, both or none, got {flip!r}"
        )
    if flip == "both":
        augmentations.append(RandomFlipBoth())
    elif flip != "none":
        horizontal = flip == "horizontal"
        augmentations.append(T.RandomFlip(0.5, horizontal=horizontal, vertical=not horizontal))
    if cfg.INPUT.CROP.ENABLED:
        if cfg.INPUT.CROP.TYPE != "absolute_range":
            raise InputError(
                f"INPUT.CROP.TYPE must be 'absolute_range', got {cfg.INPUT.CROP.TYPE!r}; "
                "the official recipe is TYPE absolute_range, SIZE [384, 600]"
            )
        augmentations.append(
            RandomResizedCrop(cfg.INPUT.CROP_RESIZE_SIZES, tuple(cfg.INPUT.CROP.SIZE), rule=rule)
        )
    # Both official branches end in this resize, so one is enough.
    augmentations.append(ResizeShortSide(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, rule))
    return augmentations
