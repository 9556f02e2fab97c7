"""Where pictures come from: files, videos, webcams; what cannot be used is said and left out."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..data.image_files import read_image
from ..errors import InputError

logger = logging.getLogger(__name__)

#: How the names of videos end, in small letters.
VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
#: Of these, those that say how many pictures they have; of others it follows from their length,
#: with an error of a few.
COUNTED = (".mp4", ".m4v", ".mov", ".avi")

#: Pictures a second of a video that does not say it, as webcams do not.
USUAL_RATE = 25.0


class Frame(NamedTuple):
    """A picture, and what it is called."""

    name: str
    #: (H, W, 3) uint8 RGB.
    pixels: np.ndarray


class Skipped:
    """What could not be used. Each is said at once, the number of all decides the exit status."""

    def __init__(self):
        self.count = 0

    def add(self, why: object) -> None:
        self.count += 1
        logger.warning(f"skipped: {why}")


def read_pictures(paths: Sequence[str], skipped: Skipped) -> Iterator[Frame]:
    """The pictures of the files that can be read."""
    for path in paths:
        try:
            yield Frame(path, read_image(path))
        except InputError as error:
            skipped.add(error)


class Video:
    """A video file or a webcam, open for reading."""

    def __init__(self, source: str | int):
        """
        Args:
            source: the path of a file, or the number of a webcam.

        Raises:
            InputError: if it cannot be opened.
        """
        self.is_webcam = isinstance(source, int)
        self.name = f"webcam {source}" if self.is_webcam else source
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise InputError(
                f"{self.name}: cannot be opened; "
                + (
                    "give the number of another, and see that no other program uses it"
                    if self.is_webcam
                    else "it is no video that OpenCV knows, or it is cut off: get an intact copy, "
                    "or convert it to .mp4"
                )
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        #: Pictures a second.
        self.rate = rate if math.isfinite(rate) and 0 < rate < 1000 else USUAL_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        #: As the file says; None if nobody knows.
        self.num_frames = count if count > 0 and not self.is_webcam else None

    def frames(self, skipped: Skipped) -> Iterator[Frame]:
        """Its pictures; a webcam's have no end."""
        number = read = 0
        while self._capture.grab():
            number += 1
            decoded, pixels = self._capture.retrieve()
            if decoded:
                read += 1
                yield Frame(f"{self.name}#{number}", np.ascontiguousarray(pixels[..., ::-1]))
            else:
                skipped.add(f"{self.name}: picture {number} cannot be decoded")
        self._capture.release()
        if self.is_webcam:
            skipped.add(f"{self.name}: gives no more pictures; see whether it is still connected")
        elif not read or self._lacks_pictures(number):
            of_all = f" of the {self.num_frames} that it announces" if self.num_frames else ""
            skipped.add(
                f"{self.name}: has {number} pictures that can be read{of_all}: it is cut off or "
                "damaged, or was trimmed without being encoded anew; get an intact copy"
            )

    def _lacks_pictures(self, number: int) -> bool:
        if self.num_frames is None:
            return False
        if self.name.lower().endswith(COUNTED):
            return number < self.num_frames
        return number < 0.99 * self.num_frames - 2


def is_video(path: str) -> bool:
    """By its name."""
    return path.lower().endswith(VIDEO_ENDINGS)
