"""Reading image files: pixels, and for a whole data set the headers, before training starts."""

import logging
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import InputError
from .findings import Findings
from .in_threads import in_threads

logger = logging.getLogger(__name__)

#: Pillow's modes whose pixels `convert("RGB")` keeps. It clips 16-bit, 32-bit and float pixels
#: instead of scaling them: an X-ray or a depth map becomes all white, or all black.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")

#: How the names of image files end, in small letters.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

#: What Pillow's decoders raise for a file that is cut off, corrupt or no image.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

#: By EXIF orientation, as detectron2 does it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: What is wrong with a dataset dict, and the remedy.
NO_FILE_NAME = ("its dataset dict has no 'file_name'", "add the path")

MAX_REPORTED = 10


class _Unreadable(Exception):
    """Why an image cannot be used, and the remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy


def read_image(
    file_name: str, image_format: str = "RGB", *, where: str | None = None
) -> np.ndarray:
    """
    The pixels of an image file, upright as its EXIF orientation says.

    Args:
        file_name: anything that Pillow reads, of 8 bits a channel; of an animation, the first
            picture. Transparency is dropped.
        image_format: "RGB" or "BGR", the order of the channels.
        where: what messages call the image; its file name if None.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: names the image, what is wrong with the file, and the remedy.
    """
    if image_format not in ("RGB", "BGR"):
        raise InputError(f"INPUT.FORMAT must be 'RGB' or 'BGR', got {image_format!r}")
    with _named(file_name if where is None else where), _opened(file_name) as image:
        array = _upright_pixels(image)
    return array[..., ::-1] if image_format == "BGR" else array


def pillow_pixels(image: Image.Image, where: str) -> np.ndarray:
    """
    :func:`read_image`, as RGB, of what is an image of Pillow already.

    Raises:
        InputError: names the image as `where` does.
    """
    with _named(where), _decoding(""):
        _check_mode(image)
        return _upright_pixels(image)


def _upright_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    image.load()  # which turns a TIFF by itself, and takes the orientation off it
    transpose = _UPRIGHT.get(_orientation(image))
    if transpose is not None:
        image = image.transpose(transpose)
    return np.asarray(image.convert("RGB"))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What is :class:`_Unreadable` inside becomes an InputError about the image `where`."""
    try:
        yield
    except _Unreadable as error:
        raise InputError(f"{where}: {error.reason}; {error.remedy}") from error.__cause__


def image_sizes(file_names: Sequence[str], name: str, findings: Findings) -> list[tuple[int, int]]:
    """
    (width, height) of each file, px, upright, from its header. One that cannot be used is a problem
    of `findings`, and has 0, 0.

    Args:
        name: of the data set, for messages.
    """
    sizes = []
    found = in_threads(_image_size, file_names, f"{name}: reading headers")
    for file_name, size in zip(file_names, found):
        if isinstance(size, _Unreadable):
            findings.problem(size.reason, file_name, f"{size.reason}; {size.remedy}")
            size = (0, 0)
        sizes.append(size)
    return sizes


def _image_size(file_name: str) -> tuple[int, int] | _Unreadable:
    try:
        with _opened(file_name) as image:
            return _upright_size(image, _orientation(image))
    except _Unreadable as error:
        return error


def size_fault(
    said: tuple[Any, Any], found: tuple[int, int], orientation: int | None = None
) -> tuple[str, str] | None:
    """
    What is wrong if a json says one (width, height) and the file has another; the remedy.

    Args:
        found: of the file, upright.
        orientation: that of its EXIF data, which made it upright; None where it was not kept.
    """
    if said == found:
        return None
    reason = (
        f"the json says width x height = {said[0]} x {said[1]} but the file has "
        f"{found[0]} x {found[1]}"
    )
    if orientation in (1, None):
        reason += "" if orientation else " (EXIF orientation applied)"
        return reason, "correct the json or the file, else the boxes are wrong"
    return (
        f"{reason}, turned upright as its EXIF orientation {orientation} says",
        "if the boxes belong to the image as it is stored, take the orientation out of the file "
        "(exiftool -Orientation= FILE); if they belong to the upright image, correct width and "
        "height in the json",
    )


def describe_image(dataset_dict: dict[str, Any]) -> str:
    """What messages call the image of a dataset dict."""
    return f"image {dataset_dict.get('image_id')} ({dataset_dict.get('file_name')})"


@dataclass
class ImageFiles:
    """What the headers of the image files of a data set say, in its order."""

    #: of the data set, for messages
    name: str
    #: (N, 2) int64 width and height, px, upright; 0, 0 of an image that cannot be used
    sizes: np.ndarray
    #: (N,) bool: turned or mirrored to be upright, as EXIF says
    turned: np.ndarray
    #: (N,) int64 length of the file; -1 of an image that cannot be used
    num_bytes: np.ndarray
    #: (image, reason, remedy) of each image that cannot be used
    faults: list[tuple[str, str, str]]

    def complaint(self) -> str:
        """Lists the first faulty images, their number, and the remedies; "" if there are none."""
        faults = self.faults
        if not faults:
            return ""
        lines = [
            f"data set {self.name!r}: {len(faults)} of {len(self.sizes)} images cannot be used"
        ]
        lines += [
            f"  {i}. {image}: {why}" for i, (image, why, _) in enumerate(faults[:MAX_REPORTED], 1)
        ]
        if len(faults) > MAX_REPORTED:
            lines.append(f"  ... and {len(faults) - MAX_REPORTED} more")
        remedies = dict.fromkeys(remedy for _, _, remedy in faults)
        return "\n".join([*lines, *(f"Remedy: {remedy}" for remedy in remedies)])


def read_headers(dataset_dicts: Sequence[dict[str, Any]], name: str) -> ImageFiles:
    """
    Reads the header of every image of a data set, and finds what reading its pixels would stop at:
    files that are missing, empty or no images, pixels of more than 8 bits, another size than the
    dataset dict says, more pixels than Pillow wants to decode.

    A damage behind the header is not found.

    Args:
        dataset_dicts: "file_name", and where known "image_id", "width" and "height" in px.
        name: of the data set, for messages.
    """
    start = time.monotonic()
    headers, faults = [], []
    found = in_threads(_header, dataset_dicts, f"{name}: reading headers")
    for dataset_dict, header in zip(dataset_dicts, found):
        if isinstance(header, _Unreadable):
            faults.append((describe_image(dataset_dict), header.reason, header.remedy))
            header = (0, 0, False, -1)
        headers.append(header)
    if not faults:
        seconds = time.monotonic() - start
        logger.info("%s: headers of all %d images are sound (%.1f s)", name, len(headers), seconds)
    columns = np.array(headers, dtype=np.int64).reshape(-1, 4)
    return ImageFiles(name, columns[:, :2], columns[:, 2].astype(bool), columns[:, 3], faults)


def _header(dataset_dict: dict[str, Any]) -> tuple[int, int, bool, int] | _Unreadable:
    """(width, height, whether it was turned, bytes) of an image that can be used."""
    try:
        if not dataset_dict.get("file_name"):
            raise _Unreadable(*NO_FILE_NAME)
        with _opened(dataset_dict["file_name"]) as image:
            # The base class's method: that of PNG decodes all pixels, in case EXIF follows them.
            orientation = _orientation(image, Image.Image.getexif)
            size = _upright_size(image, orientation)
            said = (dataset_dict.get("width", size[0]), dataset_dict.get("height", size[1]))
            if said != size:
                orientation = _orientation(image)
                size = _upright_size(image, orientation)
            if said != size:
                raise _Unreadable(*size_fault(said, size, orientation))
            return *size, orientation in _UPRIGHT, os.path.getsize(dataset_dict["file_name"])
    except _Unreadable as error:
        return error


@contextmanager
def _opened(file_name: str) -> Iterator[Image.Image]:
    """The open image; its errors, and those of what is done with it, are :class:`_Unreadable`."""
    with _decoding(file_name), Image.open(file_name) as image:
        _check_mode(image)
        yield image


@contextmanager
def _decoding(file_name: str) -> Iterator[None]:
    """
    Errors of Pillow's become :class:`_Unreadable`.

    Args:
        file_name: "" for an image that somebody else has opened.
    """
    again = "replace it by an intact copy, or leave the image out"
    try:
        yield
    except FileNotFoundError as error:
        raise _Unreadable(
            "the file does not exist",
            "restore it, or correct its path; in a json, file_name or the image root",
        ) from error
    except Image.DecompressionBombError as error:
        raise _Unreadable(
            f"too large to be decoded ({error})",
            "cut it into tiles or make it smaller, and its boxes with it; a file that you trust "
            "and have the memory for is read after raising PIL.Image.MAX_IMAGE_PIXELS",
        ) from error
    except DECODING_ERRORS as error:
        if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
            raise _Unreadable("the file cannot be decoded (it is empty)", again) from error
        text = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            text = f"it begins with {_beginning(file_name)!r}, as no image that Pillow knows"
        raise _Unreadable(f"the file cannot be decoded ({text})", again) from error


def _check_mode(image: Image.Image) -> None:
    if image.mode not in MODES:
        raise _Unreadable(*_mode_fault(image.mode))


def _beginning(file_name: str) -> bytes:
    with open(file_name, "rb") as file:
        return file.read(24)


def _mode_fault(mode: str) -> tuple[str, str]:
    """Why an image of a mode outside of `MODES` is refused, and what to do."""
    if mode[0] not in "IF":
        return f"its colours (Pillow's mode {mode}) are not supported", "save it as RGB, 8 bits"
    kind = "floating-point numbers" if mode[0] == "F" else "integers of more than 8 bits"
    return (
        f"its pixels are {kind} (Pillow's mode {mode}), the model takes 8 bits",
        "scale all images of more than 8 bits alike, from the range LOW to HIGH that matters in "
        "them (16 bits: 0 to 65535, 12 bits: 0 to 4095): a = np.asarray(Image.open(old), float); "
        "Image.fromarray(np.uint8(255 * np.clip((a - LOW) / (HIGH - LOW), 0, 1))).save(new)",
    )


def _orientation(image: Image.Image, getexif=lambda image: image.getexif()) -> int:
    """EXIF orientation; 1, upright, if there is none or it cannot be read."""
    try:
        return getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error) as error:
        # As in detectron2: cameras and editors write broken EXIF around sound pixels.
        logger.debug("EXIF is left aside: %s", error)
        return 1


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(width, height), px, after the image was turned upright; Pillow says so of a TIFF itself."""
    turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
    return image.size[::-1] if turned else image.size
