"""tools/benchmark_matcher.py: its table, and that it refuses to time what does not agree."""

import importlib

import pytest

from .conftest import ROOT
from .fork_server import python

SMALL = "--batch-size 2 --queries 6 --boxes 3 8 --layers 2 --repeat 1".split()


def test_the_table():
    """As users run it: a row for each size."""
    status, log = python(ROOT / "tools" / "benchmark_matcher.py", *SMALL)
    assert status == 0, log
    rows = [line.split("|")[1:-1] for line in log.splitlines() if line[:3] == "| 2"]
    assert [[int(cell) for cell in row[:3]] for row in rows] == [[2, 6, 3], [2, 6, 8]]
    for row in rows:
        assert all(float(cell) > 0 for cell in row[3:7])
    assert "2 layers, 1 turns" in log


def test_assignments_that_differ(monkeypatch):
    """Nothing is timed: a matcher that gives each layer the answer of the one before."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("benchmark_matcher")
    match = tool.HungarianMatcher.match
    wrong = lambda self, tasks: match(self, tasks)[::-1]  # noqa: E731
    monkeypatch.setattr(tool.HungarianMatcher, "match", wrong)
    with pytest.raises(SystemExit, match="assignments differ at batch, queries, boxes .2, 6, 3."):
        tool.main(SMALL)
