"""`ddetr visualize`: what it refuses, and what it draws of which images."""

import logging
import os

import pytest
import torch

from detectron2_ddetr import cli
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import DatasetCatalog, build_model
from detectron2_ddetr.visualization import predictions

from .conftest import ROOT, small_cfg


@pytest.mark.parametrize(
    "words, message",
    [
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        ([], "MODEL.WEIGHTS is empty"),
        (["--num-images", "0"], "--num-images is 0, but must be at least 1"),
        (["--score-threshold", "40"], "--score-threshold is 40, but scores are from 0 to 1"),
        (["--score-threshold", "nan"], "--score-threshold is nan"),
    ],
)
def test_refused_before_a_model_is_built(monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(predictions, "Predictor", lambda cfg: pytest.fail("was built"))
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    opts += [] if "MODEL.WEIGHTS" in message else ["MODEL.WEIGHTS", "model_final.pth"]
    options, keys = (words, []) if words[:1] != ["DATASETS.TEST"] else ([], words)
    with pytest.raises(SystemExit, match=message) as info:
        cli.main(
            ["visualize", "--config-file", "quick_start_from_scratch.yaml", *options, *opts, *keys]
        )
    assert "--resume" not in str(info.value)


def test_help_names_only_what_it_has(capsys):
    with pytest.raises(SystemExit):
        cli.main(["visualize", "--help"])
    assert "resume" not in capsys.readouterr().out


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A config of a thin model with a checkpoint of random weights, on the blood cells."""
    monkeypatch.chdir(ROOT)
    cfg = small_cfg()
    cfg.MODEL.DETR.NUM_CLASSES = 3
    cfg.DATASETS.TEST = ("bccd_val",)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 128
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def test_all_classes_are_drawn_and_the_best_score_is_said(untrained, tmp_path, monkeypatch, caplog):
    drawn = []
    monkeypatch.setattr(
        predictions,
        "predictions_beside_ground_truth",
        lambda pairs, *a, **k: drawn.extend(pairs),
    )
    (tmp_path / "metrics.json").touch()
    with caplog.at_level(logging.WARNING, logger="detectron2_ddetr"):
        predictions.visualize_run(untrained, str(tmp_path / "out"), 3, 0.9)
    labels = {a["category_id"] for d, _ in drawn for a in d["annotations"]}
    assert labels == {0, 1, 2} and len(drawn) == 3
    best = max(float(r.scores.max()) for _, r in drawn)
    assert f"No prediction reaches the score of 0.9; the best is {best:.2g}" in caplog.text
    assert "No metrics in" in caplog.text
    assert not os.path.exists(tmp_path / "out" / "curves.png")


def test_a_data_set_without_images(untrained, tmp_path):
    DatasetCatalog.register("nothing", list)
    try:
        untrained.DATASETS.TEST = ("nothing",)
        with pytest.raises(InputError, match="DATASETS.TEST: 'nothing' has no images"):
            predictions.visualize_run(untrained, str(tmp_path), 3, 0.9)
    finally:
        DatasetCatalog.remove("nothing")
