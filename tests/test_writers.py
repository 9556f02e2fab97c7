"""Who writes the metrics of a training, and which of them."""

import importlib.util
import json
import logging
from types import SimpleNamespace

import pytest

from detectron2_ddetr.engine.evaluator import finite_results
from detectron2_ddetr.engine.trainer import Trainer
from detectron2_ddetr.toolbox import TOOLBOX, hooks


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


def no_constant(text):
    raise ValueError(f"{text} is not json")


class Storage:
    """Takes scalars of either toolbox's hook."""

    def __init__(self):
        self.scalars = {}

    def put_scalar(self, name, value, **_):
        self.scalars[name] = value

    def put_scalars(self, smoothing_hint=True, **scalars):
        self.scalars |= scalars


def test_metrics_are_json_and_named_by_set(caplog):
    """What a user's own evaluator returns, too; several sets keep their names."""
    nan, inf = float("nan"), float("inf")
    results = {"one": {"bbox": {"AP": 1.5, "APl": nan}}, "two": {"bbox": {"AP": inf, "AP50": 2}}}
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        kept = finite_results(results)
    assert "APl is nan: not recorded" in caplog.text and "AP is inf: not recorded" in caplog.text
    hook = hooks.EvalHook(0, lambda: kept)
    hook.trainer = type("Trainer", (), {"storage": Storage(), "iter": 9, "max_iter": 10})()
    hook.after_train()
    line = json.dumps(hook.trainer.storage.scalars)
    assert json.loads(line, parse_constant=no_constant) == {"one/bbox/AP": 1.5, "two/bbox/AP50": 2}
