"""One of several processes is killed: the others stop with an error, and nothing is lost."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from .test_training import command, last_checkpoint, run, shapes, started, wait_for  # noqa: F401

TWO = ["--num-gpus", "2", "--dist-url", "auto"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def processes_of(pid):
    """Of a training, in the order in which they were started: its ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if parent == pid and "spawn_main" in words:
            found.append(int(path.name))
    return sorted(found)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed(shapes, tmp_path, rank):  # noqa: F811
    opts = ["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 5000]
    words, env = command(shapes, tmp_path, *TWO, opts=opts)
    process = started(words, env)
    wait_for(process, tmp_path, iteration=1)
    ranks = processes_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[rank], signal.SIGKILL)
    start = time.monotonic()
    output, _ = process.communicate(timeout=60)
    if rank == 0:  # with the other, the first sees the connection break, and says so as well
        assert process.returncode == 128 + signal.SIGKILL
        assert "error: process 0 was killed (SIGKILL)" in output and "--resume goes on" in output
    assert process.returncode > 0 and "error" in output.lower()
    assert time.monotonic() - start < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    stopped_at = last_checkpoint(tmp_path)["trainer"]["iteration"]
    if rank == 0:  # which wrote it
        log = run(shapes, tmp_path, "--resume", *TWO, opts=["SOLVER.MAX_ITER", stopped_at + 3])
        assert f"Starting training from iteration {stopped_at + 1}" in log
