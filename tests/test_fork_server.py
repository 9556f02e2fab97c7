"""A forked command does what a process of its own does."""

import os
import subprocess
import sys

import pytest

from .fork_server import python

SCRIPT = """
import os, signal, sys
print(sys.argv, os.getcwd(), os.environ.get("DDETR_OF_A_TEST"), __name__, flush=True)
print(os.environ["OMP_NUM_THREADS"], file=sys.stderr, flush=True)
exec(sys.argv[1])
"""


@pytest.mark.parametrize(
    "ending",
    ["pass", "sys.exit(3)", "sys.exit('said')", "1 / 0", "os.kill(os.getpid(), signal.SIGKILL)"],
)
@pytest.mark.parametrize("words", [["script.py"], ["-c", SCRIPT]], ids=["script", "code"])
def test_like_a_process(words, ending, tmp_path, monkeypatch):
    """Arguments, folder, environment, both streams and how it ends."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("DDETR_OF_A_TEST", ending)
    done = subprocess.run(
        [sys.executable, *words, ending, "2"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    status, log = python(*words, ending, 2, cwd=tmp_path)
    assert status == done.returncode
    assert log.splitlines()[:2] == done.stdout.splitlines()[:2]
    assert log.splitlines()[-1] == done.stdout.splitlines()[-1]  # of a traceback, the error


def test_that_takes_too_long(tmp_path):
    (tmp_path / "script.py").write_text("import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        python(tmp_path / "script.py", timeout=0.5)
