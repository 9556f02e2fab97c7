"""The folder of a run, and the model and classes that are loaded from it."""

import pytest
import torch

from detectron2_ddetr import cli, commands, load_config
from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.engine.trained_model import (
    files_of_run,
    load_trained_model,
    require_weights,
    with_weights,
)
from detectron2_ddetr.errors import InputError, MissingFileError
from detectron2_ddetr.toolbox import build_model

from .conftest import small_cfg

NAMES, IDS = ["red", "white", "platelet"], [3, 1, 7]


@pytest.fixture
def run(tmp_path):
    """A run with other weights in its best checkpoint than in its last."""
    cfg = small_cfg("OUTPUT_DIR", str(tmp_path))
    for name, seed in (("model_best", 1), ("model_final", 2)):
        torch.manual_seed(seed)
        checkpointer = Checkpointer(
            build_model(cfg), str(tmp_path), class_names=NAMES, category_ids=IDS
        )
        (checkpointer.save if name == "model_final" else checkpointer.save_weights)(name)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "name"), [(None, "model_final.pth"), ("best", "model_best.pth"), ("x.pth", None)]
)
def test_weights_of_a_run(run, weights, name):
    config_file, found = files_of_run(str(run), weights)
    assert config_file == str(run / "config.yaml")
    assert found == (str(run / name) if name else weights)
    if name is None:
        return
    trained = load_trained_model(load_config(config_file, with_weights([], found)))
    saved = torch.load(run / name, weights_only=True)["model"]
    torch.testing.assert_close(trained.model.state_dict(), saved, rtol=0, atol=0)
    assert not trained.model.training
    assert trained.class_names == NAMES and trained.category_ids == IDS


def test_names_come_from_the_config_where_the_checkpoint_has_none(tmp_path):
    cfg = small_cfg("DATASETS.CLASS_NAMES", NAMES)
    cfg.MODEL.WEIGHTS = str(tmp_path / "plain.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    assert load_trained_model(cfg)[1:] == (NAMES, None)
    cfg.DATASETS.CLASS_NAMES = []
    assert load_trained_model(cfg)[1:] == (None, None)
    cfg.DATASETS.CLASS_NAMES = NAMES[:2]
    with pytest.raises(InputError, match="DATASETS.CLASS_NAMES has 2 .*has 3 classes .*correct"):
        load_trained_model(cfg)


def test_folders_that_are_no_run(run, tmp_path):
    (run / "model_best.pth").unlink()
    with pytest.raises(MissingFileError, match="no model_best.pth.*last checkpoint"):
        files_of_run(str(run), "best")
    (run / "last_checkpoint").unlink()
    with pytest.raises(MissingFileError, match="has no last_checkpoint, so it is not the folder"):
        files_of_run(str(run))
    with pytest.raises(MissingFileError, match="there is no folder"):
        files_of_run(str(tmp_path / "no"))


def test_weights_are_said_once_and_at_all():
    assert with_weights(["SEED", 1], "a.pth") == ["SEED", 1, "MODEL.WEIGHTS", "a.pth"]
    with pytest.raises(InputError, match="give one of them"):
        with_weights(["MODEL.WEIGHTS", "b.pth"], "a.pth")
    with pytest.raises(InputError, match="MODEL.WEIGHTS is empty"):
        require_weights(small_cfg())


@pytest.mark.parametrize("command", ["eval", "visualize"])
def test_commands_take_the_best_of_a_run(run, command, monkeypatch):
    taken = []
    monkeypatch.setattr(commands, "run_everywhere", taken.append)
    monkeypatch.setattr(commands.run, "load", lambda args: taken.append(args) or small_cfg())
    monkeypatch.setattr(commands, "visualize_run", lambda *_: None)
    cli.main([command, str(run), "--weights", "best"])
    assert taken[0].weights == str(run / "model_best.pth")
