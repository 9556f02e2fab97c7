"""tools/kill_trainings.py: trainings that SIGKILL ends at any moment go on to the same end."""

import os
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the tool forks")
def test_killed_trainings():
    """A few kills with all that adds to a checkpoint; the tool's default is 20 of each kind."""
    tool = str(ROOT / "tools" / "kill_trainings.py")
    words = ["EMA", "accumulation", "--kills", "3", "--longest", "4"]
    command = [sys.executable, "-W", "ignore", tool, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for name in ("EMA", "accumulation"):
        assert f"{name}: 3 kills" in done.stdout
