"""Word of how far work is: when it comes, and what it says."""

import logging

import pytest

from detectron2_ddetr.data import time_left
from detectron2_ddetr.data.time_left import TimeLeft


@pytest.mark.parametrize(
    ("total", "messages"),
    [
        (10, ["a.mp4: 3 of 10 pictures, 0:00:07 left", "a.mp4: 5 of 10 pictures, 0:00:14 left"]),
        (None, ["a.mp4: 3 pictures", "a.mp4: 5 pictures"]),
    ],
)
def test_after_two_seconds_and_every_ten(monkeypatch, caplog, total, messages):
    """Three pictures in 3 s, so the other seven take 7; five in 14 s, so the other five take 14."""
    now = iter([0.0, 1.0, 3.0, 4.0, 14.0])
    monkeypatch.setattr(time_left.time, "monotonic", lambda: next(now))
    progress = TimeLeft("a.mp4", total, "pictures")
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        for count in (1, 2, 1, 1):
            progress.add(count)
    assert caplog.messages == messages


def test_nothing_is_said_at_the_end(monkeypatch, caplog):
    now = iter([0.0, 60.0])
    monkeypatch.setattr(time_left.time, "monotonic", lambda: next(now))
    progress = TimeLeft("counting", 4)
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        progress.add(4)
    assert caplog.messages == []
