"""metrics.json across stops: no row is missing, and none is there twice."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest

from detectron2_ddetr.engine.history import Evaluation, continue_history, read_history
from detectron2_ddetr.toolbox import TOOLBOX

from .test_training import run, shapes  # noqa: F401

OPTS = ["SOLVER.MAX_ITER", 80, "SOLVER.CHECKPOINT_PERIOD", 20, "TEST.EVAL_PERIOD", 20]


def test_rows_after_the_checkpoint_are_taken_out(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"iteration": i, "loss": 0.5 * i} for i in (19, 39, 59)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"iteration": 7')  # the process was killed while it wrote
    assert read_history(str(path)) == rows
    for iteration, count in ((60, 3), (58, 2), (39, 2), (0, 0)):
        assert continue_history(str(path), iteration) == rows[:count] == read_history(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    path.unlink()
    assert continue_history(str(path), 3) == [] and not path.exists()


def numbers(folder):
    """What a row has that does not depend on the clock, by iteration; each is there once."""
    rows = read_history(str(folder / "metrics.json"))
    found = {}
    for row in rows:
        kept = {k: v for k, v in row.items() if "time" not in k and not k.startswith("eta")}
        assert row["iteration"] not in found, row["iteration"]
        found[row["iteration"]] = kept
    return found


def test_stopped_anywhere(shapes, tmp_path):  # noqa: F811
    """
    Killed in the evaluation of a checkpoint, before its rows are written, or long after, or when
    all iterations are done: the history of the resumed training is that of one that never stopped.
    """
    whole = tmp_path / "whole"
    run(shapes, whole, opts=OPTS)
    expected = numbers(whole)
    assert [i for i, row in expected.items() if "bbox/AP" in row] == [19, 39, 59, 80]
    lines = (whole / "metrics.json").read_text().splitlines(keepends=True)
    before = [x for x in lines if json.loads(x)["iteration"] < 39]
    for name, done, left in (("before", 39, before), ("after", 39, lines), ("end", 79, lines[:-1])):
        folder = tmp_path / name
        folder.mkdir()
        checkpoint = f"model_{done:07d}.pth"
        shutil.copy(whole / checkpoint, folder)
        (folder / "last_checkpoint").write_text(checkpoint)
        (folder / "metrics.json").write_text("".join(left) + '{"iter')
        log = run(shapes, folder, "--resume", opts=OPTS)
        assert f"Starting training from iteration {done + 1}" in log
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"
        found = numbers(folder)
        assert found.keys() == expected.keys()
        for iteration, row in expected.items():
            if name == "before" and iteration == 39:  # its losses were lost with the process
                row = {k: v for k, v in row.items() if "bbox/" in k or k == "iteration"}
            assert found[iteration].items() >= row.items()


@pytest.mark.parametrize("iteration, times", [(79, 0), (80, 1)])
def test_what_is_broken_off_is_not_evaluated(iteration, times):
    """Of a training of 80 iterations, stopped in its last; after it the number is 80."""
    done = []
    hook = Evaluation(0, lambda: done.append(iteration) or {})
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=80, storage=None)
    hook.after_train()
    assert len(done) == times


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="the embedded host has no event files")
@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
def test_events_of_tensorboard(shapes, tmp_path):  # noqa: F811
    """Resumed from an earlier checkpoint, as after a kill: what came after it is void."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def steps():
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        return [event.step for event in events.Scalars("total_loss")]

    opts = ["SOLVER.CHECKPOINT_PERIOD", 10, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "()"]
    run(shapes, tmp_path, opts=[*opts, "SOLVER.MAX_ITER", 30])
    assert steps() == [19, 29]
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    run(shapes, tmp_path, "--resume", opts=[*opts, "SOLVER.MAX_ITER", 40])
    assert steps() == [19, 39]
    rows = read_history(str(tmp_path / "metrics.json"))
    assert [row["iteration"] for row in rows] == [19, 39]
