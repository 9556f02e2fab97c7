"""Who writes the metrics of a training."""

import importlib.util
import logging
from types import SimpleNamespace

import pytest

from detectron2_ddetr.engine.trainer import Trainer
from detectron2_ddetr.toolbox import TOOLBOX


def writers(tmp_path, monkeypatch, *, tensorboard):
    find_spec = importlib.util.find_spec
    found = {"tensorboard": object() if tensorboard else None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found[name] if name in found else find_spec(name)
    )
    trainer = Trainer.__new__(Trainer)
    trainer.cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path))
    trainer.max_iter = 3
    return [type(writer).__name__ for writer in trainer.build_writers()]


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="the embedded host has no event files")
def test_tensorboard_is_missed_at_the_start(tmp_path, monkeypatch, caplog):
    """Not when the first events are written, which may be the end of the training."""
    with caplog.at_level(logging.WARNING):
        without = writers(tmp_path, monkeypatch, tensorboard=False)
    assert "tensorboard is not installed, so no event files are written" in caplog.text
    caplog.clear()
    assert writers(tmp_path, monkeypatch, tensorboard=True) == [*without, "TensorboardXWriter"]
    assert not caplog.text


@pytest.mark.skipif(TOOLBOX != "host", reason="of the embedded host")
def test_the_host_misses_nothing(tmp_path, monkeypatch, caplog):
    assert writers(tmp_path, monkeypatch, tensorboard=False) == ["MetricsWriter"]
    assert not caplog.text
