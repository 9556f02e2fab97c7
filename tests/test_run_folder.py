"""No training writes over another one, neither a finished nor a running one."""

import subprocess
import sys
import textwrap

import pytest

from detectron2_ddetr.engine.run_folder import (
    check_run_folder,
    checkpoint_before,
    kept_unless_done,
    locked,
)
from detectron2_ddetr.errors import InputError

from .test_training import run, shapes  # noqa: F401


@pytest.mark.parametrize(
    "names, holds",
    [
        ([], False),
        (["log.txt", "config.yaml", "model_initial.pth", "last_checkpoint"], False),
        (["model_pretrained.pth"], False),
        (["model_0000199.pth"], True),
        (["model_final.pth"], True),
        (["metrics.json"], True),
    ],
)
def test_what_a_training_is(tmp_path, names, holds):
    """Iterations that would be lost; not the state before the first, nor the user's own files."""
    for name in names:
        (tmp_path / name).write_text("x")
    check_run_folder(str(tmp_path), resume=True)
    check_run_folder(str(tmp_path / "new"), resume=False)
    if holds:
        with pytest.raises(InputError, match=rf"{names[-1]}.*--resume.*OUTPUT_DIR"):
            check_run_folder(str(tmp_path), resume=False)
    else:
        check_run_folder(str(tmp_path), resume=False)


def test_an_interrupted_start_leaves_an_empty_metrics_file(tmp_path):
    (tmp_path / "metrics.json").touch()
    check_run_folder(str(tmp_path), resume=False)


LOCK = """
    import sys, time
    from detectron2_ddetr.engine.run_folder import locked
    with locked(sys.argv[1]):
        print("locked", flush=True)
        time.sleep(60)
"""


def test_another_process_is_kept_out_until_it_ends(tmp_path):
    """Also by kill -9, after which nothing tidies up."""
    words = [sys.executable, "-c", textwrap.dedent(LOCK), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"in use by process {process.pid} on "):
            check_run_folder(str(tmp_path), resume=True)
        with pytest.raises(InputError, match="in use by process"), locked(str(tmp_path)):
            pass
        process.kill()
    check_run_folder(str(tmp_path), resume=True)


def test_a_lock_within_a_lock(tmp_path):
    """The outermost keeps it to its end."""
    words = [sys.executable, "-c", textwrap.dedent(LOCK), str(tmp_path)]
    with locked(str(tmp_path)):
        with locked(str(tmp_path / ".." / tmp_path.name)):
            pass
        refused = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=50)
        assert "in use by process" in refused.stderr
    check_run_folder(str(tmp_path), resume=True)


def test_checkpoint_before(tmp_path):
    assert checkpoint_before(str(tmp_path), 5) == "model_initial.pth"
    for number in (3, 12, 20):
        (tmp_path / f"model_{number:07d}.pth").touch()
    (tmp_path / "model_final.pth").touch()
    assert checkpoint_before(str(tmp_path), 20) == "model_0000012.pth"
    assert checkpoint_before(str(tmp_path), 3) == "model_initial.pth"


def test_kept_unless_done(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("before")
    with kept_unless_done(str(path)):
        path.write_text("after")
    assert path.read_text() == "after"
    with pytest.raises(KeyError), kept_unless_done(str(path)):
        path.write_text("refused")
        raise KeyError
    assert path.read_text() == "after"


def test_a_finished_run_is_not_overwritten(shapes, tmp_path):  # noqa: F811
    """Refused before a file is written; with --resume it is complete, and stays so."""
    run(shapes, tmp_path, opts=["SOLVER.MAX_ITER", 1])
    before = {path: path.read_bytes() for path in tmp_path.glob("[!.]*.*")}
    assert tmp_path / "model_final.pth" in before and tmp_path / "metrics.json" in before
    log = run(shapes, tmp_path, opts=["SOLVER.MAX_ITER", 2], expected=1)
    assert f"error: OUTPUT_DIR '{tmp_path}' holds a training, model_final.pth" in log
    assert {path: path.read_bytes() for path in tmp_path.glob("[!.]*.*")} == before


def test_resume_without_a_checkpoint_is_said(shapes, tmp_path):  # noqa: F811
    log = run(shapes, tmp_path, "--resume", opts=["SOLVER.MAX_ITER", 1])
    assert f"--resume: {tmp_path} has no checkpoint, so the training begins now" in log
