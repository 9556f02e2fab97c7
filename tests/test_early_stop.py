"""SOLVER.EARLY_STOP_PATIENCE: the training ends when its evaluations do not get better."""

import json
from types import SimpleNamespace

import pytest

from detectron2_ddetr.config_rules import check_trainer_config
from detectron2_ddetr.engine.early_stop import EarlyStop, StoppedEarly
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.visualization.curves import plot_training_curves

from .conftest import small_cfg
from .test_training import last_checkpoint, run, shapes  # noqa: F401


def stops_at(bests, patience, *, period=10, max_iter=100):
    """The iteration at which a training stops whose best is of iteration bests[i] in the end."""
    best = SimpleNamespace(iteration=None)
    hook = EarlyStop(best, patience, period)
    for iteration in range(max_iter):
        if (iteration + 1) % period == 0:
            best.iteration = bests[(iteration + 1) // period - 1]
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=max_iter)
        try:
            hook.after_step()
        except StoppedEarly:
            return iteration
    return None


@pytest.mark.parametrize(
    "bests, patience, expected",
    [
        ([9, 19, 29, 39, 49, 59, 69, 79, 89, 99], 1, None),  # each is better
        ([9, 9, 9, 39, 39, 39, 39, 39, 39, 39], 1, 19),
        ([9, 9, 9, 39, 39, 39, 39, 39, 39, 39], 2, 29),
        ([9, 9, 9, 39, 39, 39, 39, 39, 39, 39], 3, 69),
        ([None] * 10, 1, None),  # nothing to compare with
        ([9, 9, 9, 9, 9, 9, 9, 9, 9, 9], 9, None),  # the end comes first
    ],
)
def test_when(bests, patience, expected):
    assert stops_at(bests, patience) == expected


def test_in_a_training(shapes, tmp_path):  # noqa: F811
    """A rate of next to nothing: the second evaluation is no better, and the run is complete."""
    opts = ["SOLVER.MAX_ITER", 40, "TEST.EVAL_PERIOD", 2, "SOLVER.BASE_LR", 1e-12,
            "MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.EARLY_STOP_PATIENCE", 2]  # fmt: skip
    log = run(shapes, tmp_path, opts=opts)
    assert "stopped early after 6 iterations: no better AP in 2 evaluations" in log
    assert "Traceback" not in log
    assert last_checkpoint(tmp_path)["trainer"]["iteration"] == 5
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "bbox/AP" in row] == [1, 3, 5]
    drawn = (tmp_path / "curves.png").read_bytes()
    plot_training_curves(str(tmp_path / "metrics.json"), str(tmp_path / "again.png"))
    assert drawn == (tmp_path / "again.png").read_bytes()  # with the last evaluation


@pytest.mark.parametrize("key, value", [("TEST.EVAL_PERIOD", 0), ("DATASETS.TEST", ())])
def test_without_evaluation(key, value):
    opts = ["SOLVER.EARLY_STOP_PATIENCE", 2, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("a",)]
    check_trainer_config(small_cfg(*opts))
    with pytest.raises(InputError, match="EARLY_STOP_PATIENCE is 2, but nothing is evaluated"):
        check_trainer_config(small_cfg(*opts, key, value))
