"""`ddetr predict` of videos and of a webcam."""

import json
import os

import cv2
import numpy as np
import pytest

from detectron2_ddetr import Predictor
from detectron2_ddetr.demo import frames

from .test_cli import catalogs, loggers  # noqa: F401  (fixtures for each test)
from .test_predict_command import cwd, predict  # noqa: F401
from .test_predictor import run  # noqa: F401


def write_video(path, number=20, size=(96, 64), rate=12.0):
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    rng = np.random.default_rng(0)
    for _ in range(number):
        writer.write(rng.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8))
    writer.release()
    return path


def test_videos(run, tmp_path, capsys):  # noqa: F811
    """As long, large and fast as they were; one that is cut, and one that is none, are said."""
    write_video(tmp_path / "whole.mp4", 9)
    content = write_video(tmp_path / "cut.avi", 20).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    (tmp_path / "none.mp4").write_bytes(b"text")
    words = ["whole.mp4", "cut.avi", "none.mp4", "--batch-size", 4, "--score-threshold", 0.1]
    said = predict(run, *words, "--output", "out", "--json", "found.json", expected=1)
    written = cv2.VideoCapture("out/cut.mp4").get(cv2.CAP_PROP_FRAME_COUNT)
    assert 5 < written < 15
    assert said == f"error: 2 skipped, see above; {9 + written:.0f} other images done"
    text = capsys.readouterr().out
    announced = f"cut.avi: has {written:.0f} pictures that can be read of the 20 that it announces"
    assert announced in text and "none.mp4: cannot be opened" in text
    capture = cv2.VideoCapture("out/whole.mp4")
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 9 and capture.get(cv2.CAP_PROP_FPS) == 12
    _, first = capture.read()
    assert first.shape == (64, 96, 3)
    found = json.loads((tmp_path / "found.json").read_text())
    numbers = {r["image_id"] for r in found if r["image_id"].startswith("whole")}
    assert numbers == {f"whole.mp4#{n}" for n in range(1, 10)}
    # What is found is found in that picture, in its colours.
    capture = cv2.VideoCapture("whole.mp4")
    for number in range(1, 4):
        _, pixels = capture.read()
        expected = Predictor.from_run(run)(pixels)
        expected = expected.scores[expected.scores >= 0.1].tolist()
        scores = [r["score"] for r in found if r["image_id"] == f"whole.mp4#{number}"]
        assert scores == pytest.approx(expected, abs=1e-5)


class Camera:
    """OpenCV's VideoCapture with five pictures, the third of which is broken."""

    def __init__(self, source):
        self.source, self.number = source, 0

    def isOpened(self):
        return self.source == 0

    def get(self, what):
        return 0.0 if what == cv2.CAP_PROP_FPS else -1.0

    def grab(self):
        self.number += 1
        if self.number > 5:
            raise KeyboardInterrupt
        return True

    def retrieve(self):
        return self.number != 3, np.full((48, 64, 3), 10 * self.number, np.uint8)

    def release(self):
        pass


def test_webcam(run, monkeypatch, capsys):  # noqa: F811
    """Ctrl-C is its end; a picture that is broken is left out."""
    capture_of = cv2.VideoCapture
    monkeypatch.setattr(frames.cv2, "VideoCapture", Camera)
    said = predict(run, "--webcam", 0, expected=1)
    assert "1 skipped, see above; 4 other images done" in said
    text = capsys.readouterr().out
    assert "webcam 0: picture 3 cannot be decoded" in text and "Ctrl-C" in text
    capture = capture_of(os.path.join("predictions", "webcam 0.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and capture.get(cv2.CAP_PROP_FPS) == 25


def test_a_webcam_that_is_not_there_or_goes(run, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(frames.cv2, "VideoCapture", Camera)
    assert "nothing was done" in predict(run, "--webcam", 1, expected=1)
    assert "webcam 1: cannot be opened; give the number of another" in capsys.readouterr().out
    monkeypatch.setattr(Camera, "grab", lambda self: False)
    assert "nothing was done" in predict(run, "--webcam", 0, expected=1)
    assert "webcam 0: gives no more pictures" in capsys.readouterr().out
