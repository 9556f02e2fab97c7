"""`ddetr inspect`: what it writes of which images, and what it refuses."""

import json
import re
import shlex
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr import cli
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model
from detectron2_ddetr.visualization.inspection.backbones import places_of
from detectron2_ddetr.visualization.inspection.choice import choose
from detectron2_ddetr.visualization.inspection.truth import Truth
from detectron2_ddetr.visualization.inspection.view import View

from .conftest import DATA, FAMILY, ROOT, small_cfg
from .test_cli import loggers  # noqa: F401  (a fixture)
from .test_inspection import view_of
from .test_readme import blocks

JSON = str(DATA / "annotations" / "instances_val.json")
ALWAYS = {
    *("encoder_points.png", "receptive_field.png", "decoder_points.png", "trajectory.png"),
    *("position_encodings.png", "gradients.png", "encoder.html"),
}
OF_POINTS = {"encoder_points.png", "receptive_field.png", "decoder_points.png", "encoder.html"}
OF_DETR = {"encoder_attention.png", "decoder_attention.png", "attention_of_objects.png",
           "attention_of_nothing.png"}  # fmt: skip
RUNS = ("single_scale", "two_stage", "dino", "detr")
LOSSES = {"matching.png", "query_losses.png"}


def write_run(folder, variant, *opts):
    """The folder of a run of a thin model that has learned nothing."""
    folder.mkdir()
    cfg = small_cfg(*opts, config=FAMILY.get(variant, variant))
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 128
    cfg.DATASETS.CLASS_NAMES = ["RBC", "WBC", "Platelets"]
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_run(folder / name, name) for name in RUNS}


@pytest.fixture
def image():
    """One of the validation images."""
    return next(str(path) for path in sorted((DATA / "val").iterdir()))


def view_of_boxes(boxes):
    """What :func:`places_of` reads of a view of 200x160 px."""
    image = np.zeros((160, 200, 3), np.uint8)
    captured = SimpleNamespace(
        num_layers=lambda kind: 1, layer_outputs=lambda layer: {"pred_boxes": boxes[None]}
    )
    return View(image, captured)


def written(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["single_scale", "two_stage", "detr"])
def test_every_picture_is_written(runs, name, image, tmp_path, monkeypatch):
    """Also of an image that EXIF turns, with the truth of another file of its name."""
    monkeypatch.chdir(ROOT)
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(np.full((60, 100, 3), 90, np.uint8)).save(turned, exif=exif)
    truth = tmp_path / "truth.json"
    content = json.loads(open(JSON).read())
    content["images"].append({"id": 10**6, "file_name": "turned.png", "width": 60, "height": 100})
    truth.write_text(json.dumps(content))
    out = tmp_path / "out"
    words = ["inspect", runs[name], image, str(turned), "--truth", str(truth)]
    words += ["--output", str(out), "--layer", "0", "--layer", "1", "MODEL.DEVICE", "cpu"]
    words[-2:-2] = ["--score-threshold", "0.99"]  # which the best alone counts as reaching
    cli.main([*words, "TEST.DETECTIONS_PER_IMAGE", "7"])
    (stem,) = re.findall(r"(\w+)\.jpg$", image)
    always = ALWAYS - OF_POINTS | OF_DETR if name == "detr" else ALWAYS
    proposals = {"proposals.png"} if name == "two_stage" else set()
    assert written(out) == {stem, "turned"}
    assert written(out / stem) == always | LOSSES | proposals
    assert written(out / "turned") == always | proposals  # it has no box to match
    if name == "detr":
        return
    tall = cv2.imread(str(out / "turned" / "receptive_field.png"))
    assert tall.shape[0] > 600  # upright: as high as panels are long
    page = (out / "turned" / "encoder.html").read_text()
    assert '"width": 60, "height": 100' in page and '"layer 0"' in page and '"layer 1"' in page


def test_earlier_checkpoints(runs, image, tmp_path):
    """One more picture, of the ground truth that is named."""
    words = ["inspect", runs["single_scale"], image, "--output", str(tmp_path / "out")]
    words += ["--earlier", f"{runs['single_scale']}/model_final.pth"]
    with pytest.raises(SystemExit, match="name one, and the --truth"):
        cli.main(words)
    cli.main([*words, "--truth", JSON, "MODEL.DEVICE", "cpu"])
    (folder,) = (tmp_path / "out").iterdir()
    assert written(folder) == ALWAYS | LOSSES | {"matching_by_checkpoint.png"}
    with pytest.raises(SystemExit, match="none.pth"):
        cli.main([*words, "--truth", JSON, "--earlier", str(tmp_path / "none.pth")])


@pytest.mark.parametrize(
    "config, picture",
    [
        ("deformable_detr/deformable_detr_R_50_dcnv2_50ep.yaml", "convolution_points.png"),
        ("dat/deformable_detr_DAT_T_50ep.yaml", "deformed_keys.png"),
    ],
)
def test_backbones_that_choose_their_places(config, picture, image, tmp_path):
    """One more picture, with a panel for each place, or for the pixel that is asked for."""
    run = write_run(tmp_path / "run", config, "MODEL.BACKBONE.FREEZE_AT", 0)
    widths = []
    for chosen in ([], ["--pixel", "300", "200"]):
        out = tmp_path / f"out{len(chosen)}"
        cli.main(["inspect", run, image, "--output", str(out), *chosen, "MODEL.DEVICE", "cpu"])
        (folder,) = out.iterdir()
        assert written(folder) == ALWAYS | {picture}
        widths.append(cv2.imread(str(folder / picture)).shape[1])
    if picture == "convolution_points.png":
        assert widths[1] < widths[0]  # one place instead of two or three


def test_places_in_an_image():
    """The middles of the largest and the smallest box, and what is furthest from all of them."""
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.6, 0.3, 0.1, 0.1], [0.7, 0.2, 0.2, 0.2]])
    view = view_of_boxes(boxes)
    places = places_of(view, SimpleNamespace(detected=[0, 1, 2]))
    height, width = view.image.shape[:2]
    assert places["a large object"] == pytest.approx((0.25 * width, 0.5 * height), abs=1)
    assert places["a small object"] == pytest.approx((0.6 * width, 0.3 * height), abs=1)
    x, y = places["background"]
    assert x > 0.75 * width and y > 0.75 * height
    alone = places_of(view, SimpleNamespace(detected=[1]))
    assert list(alone) == ["a large object", "background"]


def test_where_the_queries_put_boxes(runs, image, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 90 + number, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    drawn = []
    monkeypatch.setattr(
        "detectron2_ddetr.visualization.inspection.command.query_map",
        lambda boxes, queries: drawn.append((boxes, queries)) or np.zeros((9, 9, 3), np.uint8),
    )
    out = tmp_path / "out"
    cli.main(["inspect", runs["two_stage"], "--over", str(folder), "--output", str(out)])
    ((boxes, queries),) = drawn
    assert boxes.shape == (3, 12, 4) and list(queries) == list(range(12))
    assert (boxes >= 0).all() and (boxes <= 1).all() and not np.allclose(boxes[0], boxes[1])
    assert written(out) == {"query_map.png"}


def test_the_readme(runs, tmp_path, monkeypatch):
    """Its command runs, and its table names all that is written, with --over too."""
    monkeypatch.chdir(ROOT)
    (command,) = (code for code in blocks("") if "ddetr inspect" in code)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["ddetr", "inspect", "output/demo"]
    over = tmp_path / "over"
    over.mkdir()
    shutil.copy(words[3], over)
    options = ["--output", str(tmp_path / "out"), "--over", str(over)]
    options += ["--score-threshold", "0.99"]  # which the best alone counts as reaching
    for name in ("dino", "detr"):
        cli.main(["inspect", runs[name], *words[3:], *options])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("**Look inside.**") : text.index("`with detectron2_ddetr.capture")]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall("`(.*?)`", row)}
    found = {path.name.removesuffix(".png") for path in (tmp_path / "out").rglob("*.*")}
    # Two are of backbones that this model has not: test_backbones_that_choose_their_places; one
    # takes --earlier: test_earlier_checkpoints.
    others = {"convolution_points", "deformed_keys", "matching_by_checkpoint"}
    assert named == found | others


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no image is given"),
        (["nothing.jpg"], "there is no image nothing.jpg"),
        (["IMAGE", "IMAGE"], "another image has its name too"),
        (["IMAGE", "--score-threshold", "40"], "--score-threshold is 40: scores are from 0 to 1"),
        (["IMAGE", "--over", "configs"], "--over: configs has no image"),
        (["IMAGE", "--truth", "nothing.json"], "nothing.json"),
        (["IMAGE", "--pixel", "640", "3"], r"--pixel is \(640, 3\), but the image is 640 x 480"),
        (["IMAGE", "--query", "12"], "--query is 12, but queries are from 0 to 11"),
        (["IMAGE", "--level", "4"], "--level is 4, but levels are from 0 to 3"),
        (["IMAGE", "--layer", "2"], "--layer is 2, but layers are from 0 to 1"),
        (["IMAGE", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["IMAGE", "MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_what_is_refused(runs, image, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [image if word == "IMAGE" else word for word in words]
    output = ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as info:
        cli.main(["inspect", runs["two_stage"], *output, *words])
    assert "--resume" not in str(info.value)
    assert not list(tmp_path.glob("out/*"))


def test_no_run_is_given(tmp_path):
    with pytest.raises(SystemExit, match="^error: nothing is given: name the folder of a run"):
        cli.main(["inspect"])
    with pytest.raises(SystemExit, match="has no config.yaml, so it is not the folder of a run"):
        cli.main(["inspect", str(tmp_path)])


def test_options_that_do_not_exist(capsys):
    for words in (["inspect", "a", "b", "--no-such"], ["compare", "a", "--no-such"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "unrecognized arguments: --no-such" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["inspect", "--help"])
    said = capsys.readouterr().out
    assert "example: ddetr inspect" in said and len(said.splitlines()) <= 30


def test_what_is_looked_at_by_default():
    """The best detection, its middle, the last layers; what is given counts more."""
    view = view_of()
    options = {"pixel": None, "level": 0, "query": None, "layers": None, "score_threshold": 1.0}
    best = view.detections()[0].query
    choice = choose(view, **options)
    assert choice.query == best and choice.detected == [best]
    assert (choice.encoder_layers, choice.decoder_layers) == ([1], [2])
    height, width = view.image.shape[:2]
    x1, y1, x2, y2 = view.boxes(2)[best]
    expected = (np.clip((x1 + x2) / 2, 0, width - 1), np.clip((y1 + y2) / 2, 0, height - 1))
    assert choice.pixel == pytest.approx(expected)
    other = (best + 1) % 9
    options |= {"query": other, "pixel": [3.0, 4.0], "layers": [2, 0], "score_threshold": 0.0}
    choice = choose(view, **options)
    assert choice.query == other and choice.pixel == (3.0, 4.0)
    assert choice.detected[0] == other and sorted(choice.detected) == list(range(9))
    assert (choice.encoder_layers, choice.decoder_layers) == ([0], [0, 2])


def write_truth(path, names, boxes, **more):
    """A json of one image of 50 x 40 px, a box of each class in turn."""
    content = {
        "images": [{"id": 1, "file_name": "folder/a.jpg", "width": 50, "height": 40}],
        "categories": [{"id": 5 + i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 5 + i, "bbox": box, "area": 1, "iscrowd": 0}
            | more
            for i, box in enumerate(boxes)
        ],
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_truth(tmp_path):
    """Classes go by name; boxes are (cx, cy, w, h) as shares of the image, inside of it."""
    file = write_truth(tmp_path / "t.json", ["b", "a"], [[10, 4, 20, 12], [40, 30, 10, 10]])
    target = Truth(file, ["a", "b", "c"], 3).target_of("/elsewhere/a.jpg", 50, 40)
    assert target["labels"].tolist() == [1, 0]
    expected = torch.tensor([[0.4, 0.25, 0.4, 0.3], [0.9, 0.875, 0.2, 0.25]])
    torch.testing.assert_close(target["boxes"], expected)
    assert Truth(file, [], 2).target_of("a.jpg", 50, 40)["labels"].tolist() == [0, 1]
    with pytest.raises(InputError, match="has no image called b.jpg"):
        Truth(file, [], 2).target_of("b.jpg", 50, 40)
    with pytest.raises(InputError, match="has a class 'b', the model has a, c"):
        Truth(file, ["a", "c"], 2)
    with pytest.raises(InputError, match="has 2 classes, the model has 1"):
        Truth(file, [], 1)
    crowd = write_truth(tmp_path / "c.json", ["a"], [[1, 2, 3, 4]], iscrowd=1)
    assert Truth(crowd, [], 1).target_of("a.jpg", 50, 40)["boxes"].shape == (0, 4)
