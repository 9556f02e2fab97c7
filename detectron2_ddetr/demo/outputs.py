"""Where detections go: pictures, videos, a json in COCO's format of results."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np

from ..data.findings import counted
from ..engine.detections_file import columns_of, results_of
from ..engine.ids import Ids
from ..errors import InputError
from ..toolbox import Instances
from ..visualization.detections import picture_of_detections
from ..visualization.drawing import write_picture
from ..visualization.text import readable
from .frames import Frame

#: px; a .jpg cannot be longer.
LONGEST_JPEG = 65_500
FOURCC = cv2.VideoWriter_fourcc(*"mp4v")


def write_detections(
    frame: Frame,
    instances: Instances,
    class_names: Sequence[str],
    score_threshold: float,
    path: str,
) -> None:
    """
    Writes a picture.

    Args:
        instances: those to be drawn.
        class_names: see :func:`..visualization.text.readable_names`.
        score_threshold: that they reach, for the title.
        path: of the picture, without its ending.
    """
    name = readable(os.path.basename(frame.name), "(a name that no font here can write)")
    found = counted(len(instances), "detection") if len(instances) else "no detection"
    title = f"{name}: {found} with a score >= {score_threshold:g}"
    picture = picture_of_detections(frame.pixels, instances, class_names, title)
    write_picture(picture, path + (".jpg" if max(picture.shape) <= LONGEST_JPEG else ".png"))


@contextmanager
def video_file(path: str, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """
    Gives what writes a picture, (H, W, 3) uint8 RGB, to an .mp4; each is as large as the first. Of
    an odd side the last row or column is cut off, since the format has none.

    Args:
        rate: pictures a second.
    """
    writer = cv2.VideoWriter()

    def write(picture: np.ndarray) -> None:
        size = picture.shape[1::-1]  # width first
        if not writer.isOpened() and not writer.open(path, FOURCC, rate, size):
            raise InputError(
                f"{path}: OpenCV cannot write it; check the folder, and that OpenCV has FFmpeg "
                "(python -c 'import cv2; print(cv2.getBuildInformation())')"
            )
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    try:
        yield write
    finally:
        writer.release()  # without which no program could play the file


@contextmanager
def results_file(path: str, ids: Ids) -> Iterator[Callable[[Frame, Instances], None]]:
    """
    Gives what adds the detections in a frame to a json in COCO's format of results. The file has
    another name until it is complete.
    """
    try:
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            separator = "[\n"

            def write(frame: Frame, instances: Instances) -> None:
                nonlocal separator
                columns = columns_of(instances)
                for result in results_of(ids.of_image(frame.name), columns, ids.of_class):
                    file.write(separator + json.dumps(result))
                    separator = ",\n"

            yield write
            file.write("[]\n" if separator == "[\n" else "\n]\n")
        os.replace(f"{path}.tmp", path)
    finally:
        if os.path.exists(f"{path}.tmp"):
            os.remove(f"{path}.tmp")
