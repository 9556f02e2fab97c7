"""The resize rule, the crop and the config keys of the augmentation."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr.config import add_deformable_detr_config
from detectron2_ddetr.data.augmentation import (
    RandomFlipBoth,
    RandomResizedCrop,
    ResizeShortSide,
    build_augmentation,
    resized_shape,
)
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import TOOLBOX, T, get_cfg


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    return cfg


@pytest.fixture
def seeded():
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


@pytest.mark.parametrize(
    "height, width, short_side, max_size, truncated, rounded",
    [
        (480, 640, 800, 1333, (800, 1066), (800, 1067)),  # 1066.67
        (640, 480, 800, 1333, (1066, 800), (1067, 800)),
        (427, 640, 800, 1333, (800, 1199), (800, 1199)),  # 1199.06
        # Limited: 1333 * 300 / 640 = 624.84, then 625 * 640 / 300 = 1333.33.
        (300, 640, 800, 1333, (625, 1333), (625, 1333)),
        # Limited, half to even: 1333 * 250 / 500 = 666.5 -> 666, then 1332; rounding gives 667.
        (250, 500, 800, 1333, (666, 1332), (667, 1333)),
        (500, 250, 800, 1333, (1332, 666), (1333, 667)),
        (300, 900, 600, None, (600, 1800), (600, 1800)),
        (800, 1001, 800, 1333, (800, 1001), (800, 1001)),  # already as wanted
    ],
)
def test_resized_shape_by_hand(height, width, short_side, max_size, truncated, rounded):
    assert resized_shape(height, width, short_side, max_size, "truncate") == truncated
    assert resized_shape(height, width, short_side, max_size, "round") == rounded


def test_resized_shape_of_many_sizes():
    """Parity J77: 10 000 sizes, in exact fractions where the code has floats."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(64, 2000, (10_000, 2)).tolist():
        short, long = sorted((height, width))
        size = 800
        if Fraction(long, short) * size > 1333:
            size = round(Fraction(1333 * short, long))  # half to even
        short, long = size, size * long // short  # cut
        expected = (short, long) if height <= width else (long, short)
        assert resized_shape(height, width, 800, 1333, "truncate") == expected


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="compares with detectron2")
def test_rounding_is_the_rule_of_detectron2():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(100, 1500, (2000, 2)).tolist():
        ours = resized_shape(height, width, 800, 1333, "round")
        assert ours == T.ResizeShortestEdge.get_output_shape(height, width, 800, 1333)


def official_shape(height, width, size, max_size):
    """The official formula, height first, as fractions where it has floats."""
    short, long = sorted((height, width))
    if Fraction(long, short) * size > max_size:
        size = round(Fraction(max_size * short, long))  # half to even
    if short == size:
        return height, width
    shape = size, size * long // short
    return shape if height <= width else shape[::-1]


@pytest.mark.parametrize("size, max_size", [(800, 1333), (480, 1333), (640, 1000), (320, 608)])
def test_ordinary_shapes_are_the_official_ones(size, max_size):
    for short in (24, 100, 240, 333, 480, 799, 800, 1080):
        for long in range(short, 12 * short, max(short // 40, 1)):
            expected = official_shape(short, long, size, max_size)
            assert resized_shape(short, long, size, max_size, "truncate") == expected
            assert resized_shape(long, short, size, max_size, "truncate") == expected[::-1]


@pytest.mark.parametrize("rule", ["truncate", "round"])
@pytest.mark.parametrize("max_size", [64, 128, 1333])
def test_no_shape_is_longer_than_the_limit(rule, max_size):
    """But for the official rounding: half a pixel of the short side, in pixels of the long one."""
    shapes = [(5000, 3), (20000, 8), (5000, 1), (3000, 2), (65000, 1), (1000, 20), (1999, 41)]
    shapes += [(long, short) for long in (100, 1000, 5003) for short in range(1, 100)]
    for long, short in shapes:
        for size in (16, 480, 800):
            ours = resized_shape(long, short, size, max_size, rule)
            assert ours == resized_shape(short, long, size, max_size, rule)[::-1]
            assert 1 <= ours[1] <= ours[0] <= max_size * (1 if long > 32 * short else 1.035)


def test_extreme_shape_keeps_a_pixel():
    assert resized_shape(1, 5000, 800, 1333, "truncate") == (1, 1333)
    assert resized_shape(5000, 2, 800, 1333, "truncate") == (1333, 1)
    assert resized_shape(5000, 1, 800, 1333, "round") == (1333, 1)
    assert resized_shape(5000, 3, 800, 128, "truncate") == (128, 1)
    assert resized_shape(8, 20000, 800, 1333, "truncate") == (1, 1333)
    assert resized_shape(1, 5000, 800, None, "truncate") == (800, 4_000_000)


def test_unknown_rule():
    with pytest.raises(InputError, match="RESIZE_RULE must be one of .*'floor'"):
        resized_shape(2, 3, 4, 5, "floor")
    with pytest.raises(InputError, match="RESIZE_RULE must be one of .*'floor'"):
        ResizeShortSide((4,), 5, "floor")


def test_resized_pixels_are_those_of_pil():
    """Parity J78."""
    image = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    aug_input = T.AugInput(image)
    ResizeShortSide((20,), None)(aug_input)
    expected = np.asarray(Image.fromarray(image).resize((31, 20), Image.BILINEAR))  # 31.33
    np.testing.assert_array_equal(aug_input.image, expected)


def test_short_sides_are_drawn_uniformly(seeded):
    """Parity J79: all sizes of the set, equally often."""
    augmentation = ResizeShortSide((20, 30, 40), 1000)
    image = np.zeros((10, 25, 3), dtype=np.uint8)
    shapes = [augmentation.get_transform(image) for _ in range(600)]
    counts = {side: sum(t.new_h == side for t in shapes) for side in (20, 30, 40)}
    assert all(t.new_w == int(t.new_h * 2.5) for t in shapes)
    assert sum(counts.values()) == 600 and min(counts.values()) > 150


def test_zero_leaves_the_size_alone():
    image = np.zeros((10, 25, 3), dtype=np.uint8)
    assert isinstance(ResizeShortSide((0,), 1000).get_transform(image), T.NoOpTransform)


def test_crop_range_position_and_probability(seeded):
    """Parity J79: half of the images, 384 to 600 px a side, anywhere."""
    augmentation = RandomResizedCrop((50,), (20, 60))
    image = np.zeros((25, 60, 3), dtype=np.uint8)  # 50 x 120 after the resize
    drawn = [augmentation.get_transform(image) for _ in range(3000)]
    crops = [t.transforms[1] for t in drawn if not isinstance(t, T.NoOpTransform)]
    assert 1400 < len(crops) < 1600
    resizes = [t.transforms[0] for t in drawn if not isinstance(t, T.NoOpTransform)]
    assert {(t.new_h, t.new_w) for t in resizes} == {(50, 120)}
    # The height is limited by the image, the width by the range; both ends occur.
    assert (min(t.h for t in crops), max(t.h for t in crops)) == (20, 50)
    assert (min(t.w for t in crops), max(t.w for t in crops)) == (20, 60)
    assert all(t.y0 >= 0 and t.y0 + t.h <= 50 for t in crops)
    assert all(t.x0 >= 0 and t.x0 + t.w <= 120 for t in crops)
    assert min(t.x0 for t in crops) == 0 and max(t.x0 + t.w for t in crops) == 120
    relative = np.array([t.x0 / (120 - t.w) for t in crops])
    assert abs(relative.mean() - 0.5) < 0.03


def test_crop_takes_a_short_side_whole(seeded):
    augmentation = RandomResizedCrop((30,), (40, 60), prob=1.0)
    image = np.zeros((30, 90, 3), dtype=np.uint8)
    aug_input = T.AugInput(image)
    crop = augmentation(aug_input).transforms[1]
    assert (crop.h, crop.y0) == (30, 0) and 40 <= crop.w <= 60
    assert aug_input.image.shape == (30, crop.w, 3)


def test_recipe_from_config(cfg):
    """Parity J79: the first resize of the crop branch has no maximum."""
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [384, 600]
    cfg.INPUT.MIN_SIZE_TRAIN = (480, 512)
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    flip, crop, resize = build_augmentation(cfg, is_train=True)
    assert (flip.prob, flip.horizontal, flip.vertical) == (0.5, True, False)
    assert (crop.short_sides, crop.crop_range, crop.prob) == ((400, 500, 600), (384, 600), 0.5)
    assert (resize.short_sides, resize.max_size, resize.rule) == ((480, 512), 1333, "truncate")
    (resize,) = build_augmentation(cfg, is_train=False)
    assert (resize.short_sides, resize.max_size) == ((800,), 1333)

    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(build_augmentation(cfg, is_train=True)) == 1
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert build_augmentation(cfg, is_train=True)[0].vertical
    cfg.INPUT.RANDOM_FLIP = "both"
    assert type(build_augmentation(cfg, is_train=True)[0]) is RandomFlipBoth


@pytest.mark.parametrize("shape", [(4, 6), (1, 6), (4, 1), (1, 1)])
def test_flips_in_both_directions(shape):
    """All four pictures, each as often, and the box goes with its pixels."""
    np.random.seed(0)
    image = np.arange(3 * shape[0] * shape[1], dtype=np.uint8).reshape(*shape, 3)
    seen = Counter()
    for _ in range(400):
        given = T.AugInput(image)
        transform = RandomFlipBoth()(given)
        x, y, *corner = transform.apply_box(np.array([[0.0, 0.0, 1.0, 1.0]]))[0].astype(int)
        assert corner == [x + 1, y + 1] and (given.image[y, x] == image[0, 0]).all()
        rows, columns = (slice(None, None, -1 if at else 1) for at in (y, x))
        assert (given.image == image[rows, columns]).all()
        seen[x, y] += 1
    assert len(seen) == (1 + (shape[0] > 1)) * (1 + (shape[1] > 1))
    assert min(seen.values()) > 0.75 * 400 / len(seen)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("RANDOM_FLIP", "diagonal", "RANDOM_FLIP must be .*'diagonal'"),
        ("MIN_SIZE_TRAIN_SAMPLING", "range", "MIN_SIZE_TRAIN_SAMPLING must be 'choice', got 'ra"),
        ("RESIZE_RULE", "ceil", "RESIZE_RULE must be one of .*'ceil'"),
        ("MIN_SIZE_TRAIN", (), "at least one short side"),
    ],
)
def test_invalid_config(cfg, key, value, message):
    cfg.INPUT[key] = value
    with pytest.raises(InputError, match=message):
        build_augmentation(cfg, is_train=True)


@pytest.mark.parametrize("size", [[600, 384], [384], [384, 500, 600], [0.5, 0.9], [0, 600]])
def test_crop_size(cfg, size):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute_range"
    cfg.INPUT.CROP.SIZE = size
    with pytest.raises(InputError, match="CROP.SIZE must be"):
        build_augmentation(cfg, is_train=True)


def test_relative_crop_is_refused(cfg):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "relative_range"
    with pytest.raises(InputError, match="CROP.TYPE must be 'absolute_range', got 'rel"):
        build_augmentation(cfg, is_train=True)
