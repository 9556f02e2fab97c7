"""SOLVER.EMA_DECAY: what is evaluated and saved is an average; the training is the same."""

import json
import re
import shutil

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.config_rules import check_config
from detectron2_ddetr.errors import InputError

from .conftest import small_cfg
from .test_training import assert_same_run, last_checkpoint, run, shapes  # noqa: F401

DECAY = 0.2
EMA = ["SOLVER.EMA_DECAY", DECAY, "SOLVER.CHECKPOINT_PERIOD", 1]


def trained(checkpoint):
    return checkpoint["trainer"]["hooks"]["WeightAverage"]["trained_weights"]


@pytest.fixture(scope="module")
def averaged(shapes, tmp_path_factory):  # noqa: F811
    """The folder of a training of eight iterations with an average, saved after each."""
    folder = tmp_path_factory.mktemp("averaged")
    run(shapes, folder, opts=EMA)
    return folder


def test_the_average_is_that_of_the_weights_of_all_iterations(averaged):
    """In a loop, statistics of BatchNorm included; before the first update, what was loaded."""
    steps = [load_checkpoint_file(str(averaged / f"model_{i:07d}.pth")) for i in range(8)]
    average, moved = trained(steps[0]), False
    for n, step in enumerate(steps):
        decay = min(DECAY, (1 + n) / (10 + n))
        assert step["trainer"]["hooks"]["WeightAverage"]["updates"] == n + 1
        for name, weight in trained(step).items() if n else ():
            if weight.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * weight
        for name, weight in step["model"].items():
            if weight.is_floating_point():
                assert_close(weight, average[name], rtol=1e-5, atol=1e-7, msg=f"{n} {name}")
                moved |= n == 7 and not torch.equal(weight, trained(step)[name])
    assert moved
    first = load_checkpoint_file(str(averaged / "model_initial.pth"))
    assert_close(first["model"], trained(first), rtol=0, atol=0)


def test_the_training_is_the_same(averaged, shapes, tmp_path):  # noqa: F811
    run(shapes, tmp_path)
    plain = last_checkpoint(tmp_path)
    assert_close(trained(last_checkpoint(averaged)), plain["model"], rtol=0, atol=0)
    assert "WeightAverage" not in plain["trainer"]["hooks"]


def test_what_is_evaluated_is_the_average(averaged, shapes, tmp_path):  # noqa: F811
    """The AP of the training is that of the checkpoint's model, and not of the trained weights."""
    row = [json.loads(x) for x in (averaged / "metrics.json").read_text().splitlines()][-1]
    shutil.copy(averaged / "model_final.pth", tmp_path / "kept.pth")
    log = run(shapes, tmp_path, "--eval-only", opts=["MODEL.WEIGHTS", tmp_path / "kept.pth"])
    assert float(re.findall(r"copypaste: (\d[\d.]*),", log)[-1]) == pytest.approx(
        row["bbox/AP"], abs=1e-4
    )
    best = json.loads((averaged / "model_best.json").read_text())
    assert best["ema_decay"] == DECAY
    model = load_checkpoint_file(str(averaged / "model_best.pth"))["model"]
    assert_close(model, last_checkpoint(averaged)["model"], rtol=0, atol=0)


def resume(folder, averaged, shapes, iteration, opts):  # noqa: F811
    folder.mkdir()
    name = f"model_{iteration:07d}.pth"
    shutil.copy(averaged / name, folder)
    (folder / "last_checkpoint").write_text(name)
    return run(shapes, folder, "--resume", opts=opts), last_checkpoint(folder)


def test_resumed(averaged, shapes, tmp_path):  # noqa: F811
    """To the bit; without the key as without one; with a new one, from there."""
    whole = last_checkpoint(averaged)
    _, again = resume(tmp_path / "again", averaged, shapes, 3, EMA)
    assert_close(trained(again), trained(whole), rtol=0, atol=0)
    for checkpoint in (again, whole):
        del checkpoint["trainer"]["hooks"]["WeightAverage"]["trained_weights"]
    assert_same_run(again, whole)

    log, without = resume(tmp_path / "without", averaged, shapes, 3, ["SOLVER.EMA_DECAY", 0.0])
    assert re.search(r"another SOLVER.EMA_DECAY: 0.2 before, 0.0 now; from now on", log)
    run(shapes, tmp_path / "plain", opts=["SOLVER.CHECKPOINT_PERIOD", 4])
    plain = last_checkpoint(tmp_path / "plain")
    assert_close(without["model"], plain["model"], rtol=0, atol=0)

    _, begun = resume(tmp_path / "begun", tmp_path / "plain", shapes, 3, EMA)
    assert_close(trained(begun), plain["model"], rtol=0, atol=0)
    assert begun["trainer"]["hooks"]["WeightAverage"]["updates"] == 4


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_that_cannot_be(decay):
    with pytest.raises(InputError, match="SOLVER.EMA_DECAY must be from 0 to 0.99"):
        check_config(small_cfg("SOLVER.EMA_DECAY", decay))
