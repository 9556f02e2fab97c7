"""The line of progress: which losses it has, and the time that is left."""

import logging
from types import SimpleNamespace

from detectron2_ddetr.data.time_left import in_words
from detectron2_ddetr.engine.console import Progress, last_layer


class Storage:
    """The last values, as both toolboxes give them."""

    def __init__(self, **values):
        self.values = values

    def latest_with_smoothing_hint(self):
        return {name: (value, 0) for name, value in self.values.items()}

    def put_scalar(self, name, value, smoothing_hint):
        assert not smoothing_hint
        self.values[name] = value


def said(caplog, iteration, period=20, max_iter=100, **values):
    caplog.clear()
    hook = Progress(period)
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=max_iter, storage=Storage(**values))
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        hook.after_step()
    return [record.getMessage() for record in caplog.records]


def test_time_that_is_left(caplog):
    line = "eta: 0:02:00  iter: 19  total_loss: 3.142  loss: 1  time: 1.5  lr: 0.0001"
    values = {"loss": 1.0, "total_loss": 3.14159, "class_error": 7.0, "lr": 1e-4, "time": 1.5}
    assert said(caplog, 19, **values) == [line]
    assert said(caplog, 20, **values) == []
    assert len(said(caplog, 98, max_iter=99, **values)) == 1
    (last,) = said(caplog, 99, period=7, **values)
    assert last.startswith("eta: 0:00:00  iter: 99  ")


def test_a_long_training_fits_too(caplog):
    """Into 160 columns less the 29 of time and name: half a million iterations."""
    losses = {name: 0.0123456 for name in ("loss_ce", "loss_bbox", "loss_giou")}
    more = {f"{name}_{layer}": 1.0 for name in losses for layer in (*range(5), "enc")}
    values = {"total_loss": 12.3456, **losses, **more, "time": 0.456789, "lr": 1.23456e-5}
    (line,) = said(caplog, 100_019, max_iter=500_000, **values)
    assert line.startswith("eta: 50:45:06  iter: 100019  ") and len(line) <= 160 - 29
    assert in_words(90_061.9) == "25:01:01"


def test_before_any_time_is_known(caplog):
    (line,) = said(caplog, 19, total_loss=1.0)
    assert line.startswith("iter: 19  total_loss: 1")


def test_terms_of_the_last_layer():
    """Also of a criterion whose terms have other names."""
    names = ["loss_ce_0", "loss_ce", "loss_bbox", "loss_ce_enc", "total_loss", "loss_ce_dn_3", "lr"]
    assert last_layer(names) == ["total_loss", "loss_ce", "loss_bbox"]
    assert last_layer(["my_loss_1", "my_loss", "loss_cell", "loss_ce"]) == [
        *("my_loss", "loss_cell", "loss_ce")
    ]
