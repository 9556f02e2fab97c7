"""The predictor: what it takes, that it computes what an evaluation does, and what it refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detectron2_ddetr
from detectron2_ddetr import Predictor
from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.errors import InputError, MissingFileError
from detectron2_ddetr.toolbox import Instances, build_model

from .conftest import DATA, small_cfg

NAMES, IDS = ["red", "white", "platelet"], [3, 1, 7]
CELLS = sorted(map(str, (DATA / "val").glob("*.jpg")))[:5]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model is thin and random, but not blind."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small_cfg(
        "INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160, "MODEL.BACKBONE.FREEZE_AT", 0
    )
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    model = build_model(cfg)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    Checkpointer(model, str(folder), class_names=NAMES, category_ids=IDS).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.from_run(run)


def assert_same(found, expected, boxes=0.0, scores=0.0):
    assert found.image_size == expected.image_size
    close = torch.testing.assert_close
    close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=boxes)
    close(found.scores, expected.scores, rtol=0, atol=scores)
    close(found.pred_classes, expected.pred_classes)


def evaluated(predictor, path, **dataset_dict):
    """As an evaluation computes it: mapper and model, one image."""
    mapper = predictor.mapper
    with torch.no_grad():
        sample = mapper({"file_name": str(path), "image_id": 1, **dataset_dict})
        return predictor.model([sample])[0]["instances"]


def test_it_is_public():
    assert detectron2_ddetr.Predictor is Predictor


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_every_kind_of_image_gives_what_an_evaluation_does(run, tmp_path, order):
    """The model's own order of channels does not matter to who gives an image."""
    predictor = Predictor.from_run(run, opts=["INPUT.FORMAT", order])
    with Image.open(CELLS[0]) as image:
        image.crop((0, 0, 120, 90)).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    expected = evaluated(predictor, path)
    assert isinstance(expected, Instances) and len(expected) > 3
    bgr = cv2.imread(str(path))
    chw = torch.from_numpy(bgr.transpose(2, 0, 1).copy())
    for given in (str(path), path, Image.open(path), bgr, chw):
        assert_same(predictor(given), expected)
    for given in (
        [str(path)],
        str(tmp_path),
        f"{tmp_path}/*.png",
        [tmp_path],
        bgr[None],
        chw[None],
    ):
        (found,) = predictor(given)
        assert_same(found, expected)
    mixed = predictor(iter([path, bgr, [chw, Image.open(path)], tmp_path]))
    assert len(mixed) == 5
    for found in mixed:
        assert_same(found, expected)
    rgb = Predictor.from_run(run, opts=["INPUT.FORMAT", order], array_format="RGB")
    assert_same(rgb(bgr[..., ::-1]), expected)
    assert_same(rgb(chw.flip(0)), expected)
    assert not torch.equal(rgb(bgr).scores, expected.scores)  # colours count


def test_a_batch_is_its_images_one_by_one(run):
    """Of three sizes, in any order: none is padded."""
    images = [cv2.imread(path) for path in CELLS]
    images = [images[0], images[1][:200], images[2], images[3][:, :200], images[4]]
    one_by_one = Predictor.from_run(run)(images)
    for size in (2, 4, 5):
        together = Predictor.from_run(run, batch_size=size)(images)
        for found, expected in zip(together, one_by_one, strict=True):
            assert_same(found, expected, boxes=1e-3, scores=1e-5)


def test_padding_would_have_changed_them(predictor):
    """Why only images of one size share a batch: the model's own batches are not so."""
    sizes = [predictor._sample(cv2.imread(CELLS[0])[:h], "x") for h in (480, 200)]
    with torch.no_grad():
        alone = predictor.model(sizes[1:])[0]["instances"]
        padded = predictor.model(sizes)[1]["instances"]
    assert (alone.scores - padded.scores).abs().max() > 1e-4


def test_plain_is_json(predictor):
    found = predictor(CELLS[:2])
    plain = json.loads(json.dumps(predictor.plain(CELLS[:2])))
    assert [p["image"] for p in plain] == CELLS[:2]
    for p, instances in zip(plain, found):
        assert (p["height"], p["width"]) == instances.image_size == (480, 640)
        rows = p["detections"]
        assert [NAMES.index(r["class"]) for r in rows] == instances.pred_classes.tolist()
        assert [r["label"] for r in rows] == instances.pred_classes.tolist()
        assert [r["score"] for r in rows] == instances.scores.tolist()
        assert [r["box"] for r in rows] == instances.pred_boxes.tensor.tolist()
    single = predictor.plain(cv2.imread(CELLS[0]))
    assert single["image"] == "image 0" and single["detections"] == plain[0]["detections"]
    predictor = Predictor(model=predictor.model, mapper=predictor.mapper)
    assert {r["class"] for r in predictor.plain(CELLS[0])["detections"]} <= {"0", "1", "2"}


def test_what_is_kept(run, predictor):
    every = predictor(CELLS[0])
    assert set(every.pred_classes.tolist()) == {0, 1, 2}
    threshold = every.scores.median().item()
    found = Predictor.from_run(run, score_threshold=threshold)(CELLS[0])
    assert_same(found, every[every.scores >= threshold])
    found = Predictor.from_run(run, classes=["platelet", "red"], max_detections=3)(CELLS[0])
    assert_same(found, every[every.pred_classes != 1][:3])


def test_from_a_config_and_weights(run, predictor):
    cfg = small_cfg("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160)
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    made = Predictor(cfg, max_detections=4)
    assert made.class_names == NAMES and made.category_ids == IDS
    assert_same(made(CELLS[0]), predictor(CELLS[0])[:4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"array_format": "rgb"}, "array_format must be 'BGR' or 'RGB', got 'rgb'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"score_threshold": 40}, "score_threshold must be from 0 to 1, got 40"),
        ({"max_detections": 0}, "max_detections must be at least 1, got 0"),
        ({"classes": ["cat"]}, "no class 'cat': the model has red, white, platelet"),
    ],
)
def test_options_that_cannot_be(predictor, options, message):
    with pytest.raises(InputError, match=message):
        Predictor(model=predictor.model, mapper=predictor.mapper, class_names=NAMES, **options)


def test_no_weights_and_no_names(predictor):
    with pytest.raises(InputError, match="MODEL.WEIGHTS is empty"):
        Predictor(small_cfg())
    with pytest.raises(InputError, match="does not know the names of its classes"):
        Predictor(model=predictor.model, mapper=predictor.mapper, classes=["cat"])


def picture(height=60, width=80):
    """(H, W, 3) uint8 RGB, smooth, unlike itself when turned or with other channels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def sound_files(folder):
    """(path, the pixels that it shows) of what cameras and editors write."""
    image = Image.fromarray(picture())
    grey = image.convert("L")
    grey3 = np.repeat(np.asarray(grey)[..., None], 3, -1)
    alpha = Image.new("L", image.size, 7)
    palette = image.quantize(16)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turned by 90 degrees to the right to be upright
    cmyk = image.convert("CMYK")
    sound = {
        "exif.png": (image, np.rot90(picture(), -1), {"exif": orientation}),
        "grey.png": (grey, grey3, {}),
        "grey_alpha.png": (Image.merge("LA", [grey, alpha]), grey3, {}),
        "rgba.png": (Image.merge("RGBA", [*image.split(), alpha]), picture(), {}),
        "cmyk.tif": (cmyk, np.asarray(cmyk.convert("RGB")), {}),
        "palette.png": (palette, np.asarray(palette.convert("RGB")), {}),
        "dot.png": (image.crop((7, 7, 8, 8)), picture()[7:8, 7:8], {}),
        "long.png": (image.resize((10000, 50)), np.asarray(image.resize((10000, 50))), {}),
    }
    for name, (file, pixels, options) in sound.items():
        file.save(folder / name, **options)
        yield str(folder / name), pixels


def test_sound_files_of_all_kinds(predictor, tmp_path):
    """Boxes are in the upright image, and those of its pixels."""
    files = list(sound_files(tmp_path))
    found = predictor([path for path, _ in files])
    for (path, pixels), instances in zip(files, found, strict=True):
        assert instances.image_size == pixels.shape[:2], path
        assert_same(instances, predictor(pixels[..., ::-1]))
        assert_same(instances, evaluated(predictor, path))
        x, y = instances.pred_boxes.tensor.reshape(-1, 2).unbind(1)
        assert len(instances) and x.max() <= pixels.shape[1] and y.max() <= pixels.shape[0]


def broken_files(folder):
    """(path, what is said of it)"""
    image = Image.fromarray(picture())
    image.save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    for name, data, words in (
        ("text.jpg", b"this is no image", "cannot be decoded .it begins with b'this is no image'"),
        ("cut.jpg", content[: -len(content) // 4], "cannot be decoded .*[Tt]runcated.*intact copy"),
        ("empty.jpg", b"", "cannot be decoded .it is empty.*leave the image out"),
        ("deep.png", None, "integers of more than 8 bits .*scale all images"),
    ):
        if data is not None:
            (folder / name).write_bytes(data)
        yield str(folder / name), words


def test_broken_files_are_named_with_the_remedy(predictor, tmp_path):
    for path, words in broken_files(tmp_path):
        with pytest.raises(InputError, match=f"^{path}: .*{words}"):
            predictor(path)
        with pytest.raises(InputError, match=f"^{path}: .*{words}"):
            predictor([str(tmp_path / "whole.jpg"), path])
    with Image.open(tmp_path / "cut.jpg") as cut, Image.open(tmp_path / "deep.png") as deep:
        with pytest.raises(InputError, match="^image 0: .*[Tt]runcated"):
            predictor(cut)
        with pytest.raises(InputError, match="^image 1: .*more than 8 bits"):
            predictor([np.zeros((9, 9, 3), np.uint8), deep])


def test_places_without_an_image(predictor, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "in.jpg").mkdir()
    for given, kind, words in (
        (tmp_path, InputError, f"folder {tmp_path} has no image, .*give another"),
        (f"{tmp_path}/*.png", MissingFileError, "no file fits this pattern"),
        (f"{tmp_path}/a.png", MissingFileError, "there is no such file or folder"),
    ):
        with pytest.raises(kind, match=words):
            predictor(given)
    assert predictor([]) == []


def test_names_that_look_like_patterns_and_nested_folders(predictor, tmp_path):
    (tmp_path / "inside").mkdir()
    for name in ("a[1].png", "inside/b.png", ".c.png"):
        Image.fromarray(picture()).save(tmp_path / name)
    assert predictor(tmp_path / "a[1].png").image_size == (60, 80)
    assert len(predictor(tmp_path)) == 1
    images = [Path(p["image"]).name for p in predictor.plain(f"{tmp_path}/**/*.png")]
    assert images == ["a[1].png", "b.png"]


def test_arrays_of_one_and_four_channels(predictor):
    rgb = picture()
    grey = rgb[..., 0]
    expected = predictor(np.repeat(grey[..., None], 3, -1))
    assert_same(predictor(grey), expected)
    assert_same(predictor(grey[..., None]), expected)
    assert_same(predictor(torch.from_numpy(grey.copy())), expected)
    four = np.dstack([rgb, np.full_like(grey, 9)])
    assert_same(predictor(four), predictor(rgb))
    assert_same(predictor(torch.from_numpy(four.transpose(2, 0, 1).copy())), predictor(rgb))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (picture().transpose(2, 0, 1), r"array must be .*got \(3, 60, 80\); .* last: .transpose"),
        (torch.zeros(60, 80, 3, dtype=torch.uint8), r"tensor must be .*first: .permute\(2, 0, 1\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\); give another"),
        (np.zeros((4, 5, 2), np.uint8), r"with 1 or 4 channels, got \(4, 5, 2\)"),
        (np.zeros((4, 5, 3)), r"float64, the model takes uint8.*np.uint8\(255 \* x\)"),
        (torch.zeros(3, 4, 5), "float32, the model takes uint8"),
        (np.zeros((4, 5, 3), np.uint16), "uint16, the model takes uint8.*LOW to HIGH"),
        (np.zeros((4, 5), bool), "bool, the model takes uint8"),
        (3, "int is no image: give a path, a folder"),
        (b"x", "bytes is no image"),
        ({"image": picture()}, "dict is no image"),
        ([[None]], "NoneType is no image"),
    ],
)
def test_what_cannot_be_an_image(predictor, given, message):
    with pytest.raises(InputError, match=message):
        predictor(given)
