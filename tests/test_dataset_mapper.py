"""The mapper: boxes by hand on non-square images, reproducible draws, broken files."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr.config import add_deformable_detr_config
from detectron2_ddetr.data.augmentation import RandomResizedCrop, ResizeShortSide
from detectron2_ddetr.data.dataset_mapper import DeformableDETRDatasetMapper
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import BoxMode, T, get_cfg

WIDTH, HEIGHT = 80, 60


def annotation(bbox, category_id=0, iscrowd=0):
    """bbox is (x, y, w, h)."""
    return {
        "bbox": bbox,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category_id,
        "iscrowd": iscrowd,
        "segmentation": [[0, 0, 1, 1, 2, 0]],
    }


@pytest.fixture
def dataset_dict(tmp_path):
    """A picture whose red channel is x, green is y and blue is 200."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([x, y, np.full_like(x, 200)], axis=-1).astype(np.uint8)
    path = tmp_path / "ramp.png"
    Image.fromarray(image).save(path)
    return {
        "file_name": str(path),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [
            annotation([10, 20, 30, 25], 3),
            annotation([5, 6, 7, 8], 1, iscrowd=1),
            annotation([60, 50, 40, 4], 2),  # reaches beyond the right edge
            annotation([30, 10, 0, 12], 0),  # no area
        ],
    }


def mapper(*augmentations, is_train=True, image_format="RGB", num_classes=None):
    return DeformableDETRDatasetMapper(
        is_train,
        augmentations=augmentations,
        image_format=image_format,
        num_classes=num_classes,
    )


class Fixed(T.Augmentation):
    """Always the same transform."""

    def __init__(self, transform):
        self.transform = transform

    def get_transform(self, image):
        return self.transform


def test_without_augmentation(dataset_dict):
    before = copy.deepcopy(dataset_dict)
    sample = mapper()(dataset_dict)
    assert dataset_dict == before
    assert set(sample) == {"image", "instances", "file_name", "image_id", "height", "width"}
    assert sample["image"].shape == (3, HEIGHT, WIDTH) and sample["image"].dtype == torch.uint8
    assert sample["image"][:, 40, 70].tolist() == [70, 40, 200]
    assert sample["image"].is_contiguous()
    instances = sample["instances"]
    assert instances.image_size == (HEIGHT, WIDTH)
    expected = [[10.0, 20.0, 40.0, 45.0], [60.0, 50.0, 80.0, 54.0]]
    assert instances.gt_boxes.tensor.tolist() == expected
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.tolist() == [3, 2]
    assert instances.gt_classes.dtype == torch.int64


def test_channel_order(dataset_dict):
    sample = mapper(image_format="BGR")(dataset_dict)
    assert sample["image"][:, 40, 70].tolist() == [200, 40, 70]


def test_flip_moves_boxes_with_pixels(dataset_dict):
    sample = mapper(T.RandomFlip(1.0))(dataset_dict)
    assert sample["image"][:, 40, 70].tolist() == [WIDTH - 1 - 70, 40, 200]
    expected = [[40.0, 20.0, 70.0, 45.0], [0.0, 50.0, 20.0, 54.0]]
    assert sample["instances"].gt_boxes.tensor.tolist() == expected


def test_resize_scales_each_axis_by_its_own_ratio(dataset_dict):
    # 60 x 80 -> 31 x 41 (41.33 truncated): the ratios of height and width differ.
    sample = mapper(ResizeShortSide((31,), None))(dataset_dict)
    assert sample["image"].shape == (3, 31, 41)
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)
    rx, ry = 41 / 80, 31 / 60
    expected = [[10 * rx, 20 * ry, 40 * rx, 45 * ry], [60 * rx, 50 * ry, 41, 54 * ry]]
    torch.testing.assert_close(sample["instances"].gt_boxes.tensor, torch.tensor(expected))


def test_crop_clips_keeps_slivers_and_drops_the_rest(dataset_dict):
    """Parity J80."""
    dataset_dict["annotations"] = [
        annotation([10, 20, 30, 25], 0),  # cut at the left and the bottom
        annotation([0, 0, 25.01, 60], 1),  # a sliver 0.01 px wide remains
        annotation([5, 30, 20, 10], 2),  # ends where the window begins
        annotation([65, 12, 10, 10], 3),  # begins where the window ends
        annotation([30, 15, 5, 6], 4),  # inside
    ]
    crop = T.CropTransform(25, 10, 40, 30)  # x 25..65, y 10..40
    sample = mapper(Fixed(crop), ResizeShortSide((60,), None))(dataset_dict)  # then twice as large
    assert sample["image"].shape == (3, 60, 80)
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 4]
    expected = [[0, 20, 30, 60], [0, 0, 0.02, 60], [10, 10, 20, 22]]
    torch.testing.assert_close(
        instances.gt_boxes.tensor, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0
    )


def test_images_without_boxes_are_kept(dataset_dict):
    """Parity J81, PEERS 7.20."""
    for annotations in ([], [annotation([1, 2, 3, 4], iscrowd=1)]):
        dataset_dict["annotations"] = annotations
        instances = mapper(T.RandomFlip(1.0))(dataset_dict)["instances"]
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64


def test_inference_returns_no_instances(dataset_dict):
    sample = mapper(is_train=False)({**dataset_dict, "draw": (1, 2)})
    assert set(sample) == {"image", "file_name", "image_id", "height", "width"}


def test_from_config(dataset_dict):
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.INPUT.FORMAT = "BGR"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 30, 35
    sample = DeformableDETRDatasetMapper(cfg, is_train=False)(dataset_dict)
    assert sample["image"].shape == (3, 26, 34)  # 35 * 60 / 80 = 26.25; 26 * 80 / 60 = 34.67
    assert sample["image"][0].min() == 200
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (30,), 1000
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.RESIZE_RULE = "round"
    cfg.INPUT.MIN_SIZE_TRAIN = (31,)
    sample = DeformableDETRDatasetMapper(cfg)(dataset_dict)
    assert sample["image"].shape == (3, 31, 41) and "instances" in sample


def random_mapper():
    return mapper(
        T.RandomFlip(0.5), RandomResizedCrop((40, 50), (20, 45)), ResizeShortSide((24, 32, 40), 64)
    )


def test_draws_depend_on_seed_and_position_alone(dataset_dict):
    samples = {}
    for draw in [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (0, 4)]:
        np.random.seed(len(samples))
        samples[draw] = random_mapper()({**dataset_dict, "draw": draw})
        assert "draw" not in samples[draw]
    for draw in reversed(samples):
        again = random_mapper()({**dataset_dict, "draw": draw})
        assert torch.equal(again["image"], samples[draw]["image"])
        boxes = [s["instances"].gt_boxes.tensor for s in (again, samples[draw])]
        assert torch.equal(*boxes)
    images = [s["image"] for s in samples.values()]
    different = {(tuple(i.shape), int(i.long().sum())) for i in images}
    assert len(different) >= 5


def test_draws_leave_the_global_generator_alone(dataset_dict):
    np.random.seed(3)
    expected = np.random.random_sample(4)
    np.random.seed(3)
    random_mapper()({**dataset_dict, "draw": (5, 6)})
    np.testing.assert_array_equal(np.random.random_sample(4), expected)


def test_pixels_at_the_corners_of_boxes_follow_them(dataset_dict):
    """Whatever was drawn, the augmented box is where the pixel values say it is."""
    # A box on whole pixels: its first and last pixel column have red 20 and 59, rows 10 and 49.
    dataset_dict["annotations"] = [annotation([20, 10, 40, 40])]
    augmented = mapper(T.RandomFlip(0.5), RandomResizedCrop((120,), (150, 160), prob=0.5))
    for position in range(12):
        sample = augmented({**dataset_dict, "draw": (0, position)})
        x1, y1, x2, y2 = sample["instances"].gt_boxes.tensor[0].round().int().tolist()
        inside = sample["image"][:, y1:y2, x1:x2].float()
        _, height, width = sample["image"].shape
        if x1 > 0 and x2 < width:  # not cut: all columns of the box are there, and no others
            assert abs(inside[0].min() - 20) <= 1 and abs(inside[0].max() - 59) <= 1
        if y1 > 0 and y2 < height:
            assert abs(inside[1].min() - 10) <= 1 and abs(inside[1].max() - 49) <= 1


def test_missing_file(dataset_dict):
    dataset_dict["file_name"] += ".gone"
    with pytest.raises(ValueError, match=r"image 7 \(.*ramp.png.gone\): the file does not exist"):
        mapper()(dataset_dict)


def test_truncated_jpeg(dataset_dict, tmp_path):
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    dataset_dict["file_name"] = str(path)
    message = r"image 7 \(.*cut.jpg\): the file cannot be decoded \(.*truncated.*replace it"
    with pytest.raises(ValueError, match=message) as caught:
        mapper()(dataset_dict)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("content", [b"", b"<html>no</html>", b"\xff\xd8\xff\xe0" + b"x" * 99])
def test_file_that_is_no_image(dataset_dict, tmp_path, content):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    dataset_dict["file_name"] = str(path)
    with pytest.raises(ValueError, match=r"image 7 \(.*page.jpg\): the file cannot be decoded"):
        mapper()(dataset_dict)


def test_size_that_differs_from_the_json(dataset_dict):
    dataset_dict["width"], dataset_dict["height"] = HEIGHT, WIDTH
    message = "json says width x height = 60 x 80 but the file has 80 x 60"
    with pytest.raises(ValueError, match=message):
        mapper()(dataset_dict)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category_id": -1}, "category_id that is an integer from 0 on, got -1"),
        ({"category_id": 4}, r"category_id below the number of classes \(4, .*, got 4"),
        ({"category_id": 1.0}, "category_id that is an integer from 0 on, got 1.0"),
        ({"category_id": "cat"}, "category_id that is an integer from 0 on, got 'cat'"),
        ({"category_id": None}, "category_id that is an integer from 0 on, got None"),
        ({"category_id": True}, "category_id that is an integer from 0 on, got True"),
        ({"bbox": [1, 2, 3]}, r"bbox of 4 finite numbers, got \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, 4, 30]}, "bbox of 4 finite numbers"),
        ({"bbox": []}, "bbox of 4 finite numbers"),
        ({"bbox": None}, "bbox of 4 finite numbers, got None"),
        ({"bbox": "1234"}, "bbox of 4 finite numbers, got '1234'"),
        ({"bbox": [1, 2, [3], 4]}, "bbox of 4 finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox of 4 finite numbers"),
        ({"bbox": np.array([1, 2, np.inf, 4])}, "bbox of 4 finite numbers"),
        ({"bbox": np.array(3.0)}, "bbox of 4 finite numbers"),
        ({"bbox": [10, 10, -2, 5]}, "no negative width or height"),
        ({"bbox": [10, 10, 12, 5], "bbox_mode": BoxMode.XYXY_ABS}, "no negative width or height"),
        ({"bbox_mode": 4}, "bbox_mode of XYXY_ABS or XYWH_ABS, got 4"),
        ({"bbox_mode": None}, "bbox_mode of XYXY_ABS or XYWH_ABS, got None"),
    ],
)
def test_annotations_that_make_no_sense(dataset_dict, change, message):
    dataset_dict["annotations"][2].update(change)
    with pytest.raises(InputError, match=rf"^image 7 \(.*ramp.png\): an annotation .*{message}"):
        mapper(num_classes=4)(dataset_dict)
    dataset_dict["annotations"][2]["iscrowd"] = 1  # such as an ignored region of class -1
    assert len(mapper(num_classes=4)(dataset_dict)["instances"]) == 1


def test_annotations_that_are_no_dicts(dataset_dict):
    dataset_dict["annotations"].append([1, 2, 3, 4])
    with pytest.raises(InputError, match=r"image 7 \(.*an annotation must be a dict"):
        mapper()(dataset_dict)


@pytest.mark.parametrize("key", ["bbox", "bbox_mode", "category_id"])
def test_annotations_that_lack_something(dataset_dict, key):
    del dataset_dict["annotations"][0][key]
    with pytest.raises(InputError, match=rf"image 7 \(.*an annotation must have a '{key}'"):
        mapper()(dataset_dict)


def test_boxes_may_be_arrays_of_any_number_type(dataset_dict):
    dataset_dict["annotations"] = [
        {"bbox": np.float32([1, 2, 3, 4]), "bbox_mode": 0, "category_id": np.int64(2)},
        {"bbox": (1, 2.5, 3, 4), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
    ]
    instances = mapper(num_classes=3)(dataset_dict)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[1, 2, 3, 4], [1, 2.5, 4, 6.5]]
    assert instances.gt_classes.tolist() == [2, 0]


def test_dataset_dict_without_a_file(dataset_dict):
    del dataset_dict["file_name"]
    with pytest.raises(InputError, match=r"image 7 \(None\): .* has no 'file_name'"):
        mapper()(dataset_dict)


class Grey(T.Augmentation):
    """Gives what the model cannot take."""

    def __init__(self, function):
        self.function = function

    def get_transform(self, image):
        class Change(type(T.NoOpTransform())):
            apply_image = staticmethod(self.function)

        return Change()


@pytest.mark.parametrize(
    "function, got",
    [
        (lambda image: image[..., 0], r"\(60, 80\) uint8"),
        (lambda image: image[..., :1], r"\(60, 80, 1\) uint8"),
        (lambda image: image / 255, r"\(60, 80, 3\) float64"),
    ],
)
def test_augmentations_must_keep_the_kind_of_image(dataset_dict, function, got):
    with pytest.raises(InputError, match=rf"image 7 .*Grey.* uint8, got {got}; correct them"):
        mapper(Grey(function))(dataset_dict)


def test_number_of_classes_comes_from_the_config(dataset_dict):
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.MODEL.DETR.NUM_CLASSES = 3
    with pytest.raises(InputError, match="number of classes .3, MODEL.DETR.NUM_CLASSES.*got 3"):
        DeformableDETRDatasetMapper(cfg)(dataset_dict)
    assert "image" in DeformableDETRDatasetMapper(cfg, is_train=False)(dataset_dict)
