"""`ddetr predict`: pictures, and a json that evaluates as the run itself."""

import json
import os
import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr import Predictor, cli, commands
from detectron2_ddetr.engine import run as run_module
from detectron2_ddetr.evaluate import evaluate
from detectron2_ddetr.toolbox import Boxes, Instances
from detectron2_ddetr.visualization.detections import picture_of_detections
from detectron2_ddetr.visualization.drawing import class_color, style_of

from .test_cli import catalogs, loggers  # noqa: F401  (fixtures for each test)
from .test_predictor import CELLS, IDS, broken_files, picture, run, sound_files  # noqa: F401


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch, catalogs):  # noqa: F811
    """Where a folder that is not named goes."""
    monkeypatch.chdir(tmp_path)


def predict(*words, expected=0):
    """The message with which it ends, "" if all went well."""
    if not expected:
        cli.main(["predict", *map(str, words)])
        return ""
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", *map(str, words)])
    return str(stop.value.code)


def truth_from(detections, images, path):
    """
    A COCO json in which some of the detections of a model are true, and some nearly.

    Args:
        images: {file_name: (H, W)}.
    """
    categories = {"platelet": 5, "white": 9, "red": 2}  # another order than the model's
    records, annotations = [], []
    for number, (name, (height, width)) in enumerate(images.items()):
        records.append({"id": 70 + number, "file_name": name, "height": height, "width": width})
        for place, row in enumerate(detections[name]):
            x0, y0, x1, y1 = row["box"]
            shift = 0.1 * (place % 4) * (x1 - x0)
            box = [min(x0 + shift, width - 2), y0, x1 - x0, y1 - y0]
            if place % 3 < 2 and min(box[2:]) > 1:
                box[2] = min(box[2], width - box[0])
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 70 + number, "bbox": box, "iscrowd": 0}
                    | {"area": box[2] * box[3], "category_id": categories[row["class"]]}
                )
    content = {"images": records, "annotations": annotations}
    content["categories"] = [{"id": i, "name": name} for name, i in categories.items()]
    path.write_text(json.dumps(content))


def test_predict_json_evaluate_gives_the_ap_of_the_run(run, tmp_path, monkeypatch):  # noqa: F811
    """Of photos, and of files as cameras and editors write them, in folders."""
    root = tmp_path / "images"
    (root / "inside").mkdir(parents=True)
    found = [(path, pixels) for path, pixels in sound_files(root / "inside")]
    for number, path in enumerate(CELLS[:3]):
        Image.open(path).save(root / f"{number}.png")
        found.append((str(root / f"{number}.png"), cv2.imread(path)))
    images = {os.path.relpath(path, root): pixels.shape[:2] for path, pixels in found}
    plain = Predictor.from_run(run).plain([path for path, _ in found])
    detections = {os.path.relpath(p["image"], root): p["detections"] for p in plain}
    truth_from(detections, images, tmp_path / "truth.json")

    results = []
    test = run_module.Trainer.test
    monkeypatch.setattr(
        run_module.Trainer, "test", lambda *args: results.append(test(*args)) or results[-1]
    )
    data = ["--dataset", "mine", str(tmp_path / "truth.json"), str(root)]
    opts = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('mine',)", "DATALOADER.NUM_WORKERS", "0"]
    cli.main(["eval", str(run), *data, *opts])
    expected = results[0]["bbox"]
    assert 10 < expected["AP"] < 90

    words = [root, root / "inside", "--json", "found.json", "--ids-of", tmp_path / "truth.json"]
    predict(run, *words)
    measured = evaluate("found.json", str(tmp_path / "truth.json")).results()
    assert measured == pytest.approx(expected, abs=1e-6)
    theirs, ours = (
        sorted(json.loads(path.read_text()), key=lambda r: (r["image_id"], -r["score"], r["bbox"]))
        for path in (run / "eval" / "coco_instances_results.json", tmp_path / "found.json")
    )
    assert ours == theirs
    assert not (tmp_path / "predictions").exists()

    predict(run, *words, "--batch-size", 4)
    measured = evaluate("found.json", str(tmp_path / "truth.json")).results()
    assert measured == pytest.approx(expected, abs=1e-3)


def test_pictures_of_all_that_can_be_read(run, tmp_path, capsys):  # noqa: F811
    """The others are said one by one, with their remedy, and so is that there were some."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture()).save(tmp_path / name / "same.png")
    broken = list(broken_files(tmp_path / "b"))
    sound = list(sound_files(tmp_path / "a"))
    out = tmp_path / "out"
    said = predict(run, "a", "b", "--output", out, "--score-threshold", 0.1, expected=1)
    assert said == f"error: {len(broken)} skipped, see above; {len(sound) + 3} other images done"
    skipped = re.findall("skipped: (.*)", capsys.readouterr().out)
    for path, words in broken:
        assert any(re.match(f"b/{os.path.basename(path)}: .*{words}", text) for text in skipped)
    assert len(skipped) == len(broken)
    stems = {os.path.splitext(os.path.basename(path))[0] for path, _ in sound}
    expected = {f"{stem}.jpg" for stem in stems} | {"same.jpg", "same_2.jpg", "whole.jpg"}
    assert {p.name for p in out.iterdir()} == expected
    drawn = cv2.imread(str(out / "exif.jpg"))
    assert drawn.shape[0] > 640 and drawn.shape[1] >= 480  # upright, enlarged, under its title


def test_what_nothing_can_be_made_of(run, tmp_path):  # noqa: F811
    (tmp_path / "a.jpg").write_text("text")
    assert "1 skipped, see above; nothing was done" in predict(run, "a.jpg", expected=1)


def test_no_detection_reaches_the_score(run, tmp_path, capsys):  # noqa: F811
    predict(run, CELLS[0], "--score-threshold", 1)
    text = capsys.readouterr().out
    best = Predictor.from_run(run)(CELLS[0]).scores.max().item()
    assert f"No detection reaches the score of 1; the best is {best:.2g}" in text
    assert os.listdir("predictions") == [os.path.basename(CELLS[0])]


def test_options_and_keys_between_and_behind_the_inputs(run, tmp_path, monkeypatch):  # noqa: F811
    """They reach the predictor; without --ids-of the json has paths, and the ids of the run."""
    taken = []
    make = commands.Predictor
    monkeypatch.setattr(
        commands, "Predictor", lambda *a, **k: taken.append((a, k)) or make(*a, **k)
    )
    (tmp_path / "INPUT.png").write_bytes(b"")
    Image.fromarray(picture()).save("INPUT.png")
    words = [
        CELLS[0],
        "--tiles",
        500,
        "--top-k",
        3,
        "INPUT.png",
        "--class",
        "red",
        "--class",
        "platelet",
    ]
    words += [
        "--json",
        "found.json",
        "INPUT.MIN_SIZE_TEST",
        "64",
        "TEST.DETECTIONS_PER_IMAGE",
        9,
        "SEED",
        "-1",
    ]
    predict(run, *words)
    (cfg,), options = taken[0]
    assert cfg.INPUT.MIN_SIZE_TEST == 64 and cfg.TEST.DETECTIONS_PER_IMAGE == 9
    assert options == {
        "batch_size": 1, "max_detections": 3, "classes": ["red", "platelet"],
        "tiles": 500, "tile_overlap": 0.25,
    }  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert {r["image_id"] for r in found} == {CELLS[0], "INPUT.png"}
    assert {r["category_id"] for r in found} <= {IDS[0], IDS[2]} and len(found) <= 6
    config = ["--config-file", run / "config.yaml", "--weights", run / "model_final.pth"]
    predict(*config, *words)
    assert json.loads((tmp_path / "found.json").read_text()) == found
    with pytest.raises(SystemExit):
        cli.main(["predict", str(run), CELLS[0], "--topk", "3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is given: name the folder of a run first, or give --config-file"),
        (["RUN"], "nothing to predict on: name images, folders, videos, or give --webcam 0"),
        (["RUN", "no.jpg"], "no.jpg: there is no such file or folder"),
        (["RUN", "empty"], "folder empty has no image"),
        (["RUN", "a.png", "--score-threshold", "40"], "--score-threshold is 40, but scores are"),
        (["RUN", "a.png", "--top-k", "0"], "max_detections must be at least 1, got 0"),
        (["RUN", "a.png", "--class", "cat"], "no class 'cat': the model has red, white, platelet"),
        (["RUN", "a.png", "--output", "."], "--output . has inputs in it .a.png., which pictures"),
        (["RUN", "a.png", "--output", "a.png/x"], "folder 'a.png/x' cannot be made"),
        (["RUN", "a.png", "--json", "no/x.json"], "folder '.*/no' does not exist"),
        (["RUN", "a.png", "--ids-of", "t.json"], "give --json FILE too"),
        (["RUN", "a.png", "MODEL.DEVICEE", "cpu"], "no key MODEL.DEVICEE; did you mean"),
        (["--config-file", "quick_start_from_scratch.yaml", "a.png"], "MODEL.WEIGHTS is empty"),
        (["--config-file", "quick_start.yaml", "a.png"], "of a backbone, not a trained detector"),
    ],
)
def test_refused(run, words, message, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    Image.fromarray(picture()).save("a.png")
    found = predict(*[run if word == "RUN" else word for word in words], expected=1)
    assert found.startswith("error: ")
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].clear(), "has no images|images"),
        (
            lambda c: c["images"][0].update(file_name="other.png"),
            "a.png: .*t.json has no image who",
        ),
        (
            lambda c: c["categories"][0].update(name="cat"),
            "none of its categories .cat. is a class",
        ),
        (
            lambda c: c["images"][0].update(file_name="x/a.png"),
            "t.json has no image whose file_name",
        ),
    ],
)
def test_ids_that_do_not_fit(run, tmp_path, change, message):  # noqa: F811
    Image.fromarray(picture()).save("a.png")
    content = {
        "images": [{"id": 4, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [],
        "categories": [{"id": 1, "name": "red"}],
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    predict(run, "a.png", "--json", "found.json", "--ids-of", "t.json")
    change(content)
    (tmp_path / "t.json").write_text(json.dumps(content))
    found = predict(run, "a.png", "--json", "x.json", "--ids-of", "t.json", expected=1)
    assert re.search(message, found), found
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "x.json.tmp").exists()


def test_help_fits_a_screen_and_has_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 30 and "example: ddetr predict" in text


@pytest.mark.parametrize(("shape", "scale"), [((320, 200), 2), ((1, 1), 640), ((1280, 900), 1)])
def test_boxes_lie_where_they_were(shape, scale):
    """Below the title, enlarged as the image is."""
    height, width = shape
    box = torch.tensor([[0.25, 0.5, 0.75, 0.75]]) * torch.tensor([width, height, width, height])
    found = Instances(shape)
    found.pred_boxes, found.scores = Boxes(box.clone()), torch.tensor([0.9])
    found.pred_classes = torch.tensor([1])
    grey = np.full((height, width, 3), 128, np.uint8)
    drawn = picture_of_detections(grey, found, ("a", "b"), "title")
    assert torch.equal(found.pred_boxes.tensor, box)
    top = len(drawn) - scale * height
    assert top > 40
    coloured = (drawn[top:] == class_color(1)).all(2)
    rows, columns = np.flatnonzero(coloured.sum(1) > 50), np.flatnonzero(coloured.sum(0) > 50)
    x0, y0, x1, y1 = (box[0] * scale).tolist()
    assert [columns[0], columns[-1]] == pytest.approx([x0, x1], abs=3)
    assert [rows[0], rows[-1]] == pytest.approx([y0, y1], abs=3)


def test_lines_on_a_strip_follow_its_short_side():
    assert style_of((50, 10_000), 1) == style_of((50, 200), 1)
    assert style_of((480, 640), 1).font == 13  # as ever
