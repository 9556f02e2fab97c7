"""Images as people have them: files, folders, globs, arrays, tensors, images of Pillow."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError, MissingFileError
from .image_files import IMAGE_ENDINGS, pillow_pixels, read_image

KINDS = (
    "a path, a folder, a pattern such as 'photos/*.jpg', an image of Pillow, an array (height, "
    "width, 3), a tensor (3, height, width), or a list of these"
)


class GivenImage(NamedTuple):
    """One image that is not read yet."""

    #: Its path, or "image 3" if it is the fourth of all that are given.
    name: str
    #: A path, an array, a tensor or an image of Pillow.
    given: Any

    def pixels(self, array_format: str) -> np.ndarray:
        """
        Args:
            array_format: "RGB" or "BGR", the order of the channels of arrays and tensors.

        Returns:
            (H, W, 3) uint8 RGB, upright as EXIF says; transparency is dropped.

        Raises:
            InputError: names the image, what is wrong with it, and the remedy.
        """
        if isinstance(self.given, str):
            return read_image(self.given)
        if isinstance(self.given, Image.Image):
            return pillow_pixels(self.given, self.name)
        array = _channels_last(self.given, self.name)
        if array.dtype != np.uint8:
            raise InputError(f"{self.name}: {_dtype_fault(array.dtype)}")
        if array.shape[2] == 1:
            return np.repeat(array, 3, axis=2)
        return array[..., :3] if array_format == "RGB" else array[..., 2::-1]


def is_one_image(given: Any) -> bool:
    """Whether it is an image, and not what stands for several."""
    if isinstance(given, (str, os.PathLike)):
        return os.path.isfile(given)
    if isinstance(given, (np.ndarray, Tensor)):
        return given.ndim < 4
    return isinstance(given, Image.Image)


def given_images(given: Any) -> Iterator[GivenImage]:
    """
    The images that `given` stands for, in its order; those of a folder or pattern by their names.

    Raises:
        MissingFileError, InputError: for a path that is none, a folder or pattern without images,
            and what cannot be an image.
    """
    for number, item in enumerate(_flat(given)):
        yield GivenImage(item if isinstance(item, str) else f"image {number}", item)


def image_paths(path: str) -> list[str]:
    """
    The files that a path, a folder or a pattern means, sorted.

    Of a folder those that end as images do, but not those in folders inside it; of a pattern all,
    where ** stands for folders inside each other.

    Raises:
        MissingFileError: if there is no such file or folder.
        InputError: if there is no image.
    """
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        names = [n for n in sorted(os.listdir(path)) if n.lower().endswith(IMAGE_ENDINGS)]
        found = [os.path.join(path, name) for name in names if not name.startswith(".")]
        if not (found := [file for file in found if os.path.isfile(file)]):
            raise InputError(
                f"folder {path} has no image, no file that ends in {', '.join(IMAGE_ENDINGS)}: "
                f"give another, or {os.path.join(path, '**', '*.jpg')} for those in folders in it"
            )
        return found
    if not glob.has_magic(path):
        raise MissingFileError(f"{path}: there is no such file or folder; correct its path")
    if not (found := sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))):
        raise MissingFileError(f"{path}: no file fits this pattern; correct it")
    return found


def _flat(given: Any) -> Iterator[Any]:
    if isinstance(given, (str, os.PathLike)):
        yield from image_paths(os.fspath(given))
    elif is_one_image(given):
        yield given
    elif isinstance(given, Iterable) and not isinstance(given, (Mapping, bytes)):
        for item in given:
            yield from _flat(item)
    else:
        raise InputError(f"{type(given).__name__} is no image: give {KINDS}")


def _channels_last(given: np.ndarray | Tensor, name: str) -> np.ndarray:
    """(H, W, C) with 1, 3 or 4 channels."""
    is_tensor = isinstance(given, Tensor)
    array, shape = given, tuple(given.shape)
    if is_tensor:
        array = given.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.size:
        return array
    rule = (
        "a tensor must be (3, height, width)"
        if is_tensor
        else "an array must be (height, width, 3)"
    )
    remedy = "give another"
    if len(shape) == 3 and shape[-1 if is_tensor else 0] in (1, 3, 4):
        turned = "first: .permute(2, 0, 1)" if is_tensor else "last: .transpose(1, 2, 0)"
        remedy = f"the channels go {turned}"
    raise InputError(f"{name}: {rule}, or with 1 or 4 channels, got {shape}; {remedy}")


def _dtype_fault(dtype: np.dtype) -> str:
    if dtype.kind == "f":
        remedy = "np.uint8(255 * x) if they are from 0 to 1, np.uint8(x) if they are up to 255"
    else:
        remedy = (
            "np.uint8(255 * np.clip((x - LOW) / (HIGH - LOW), 0, 1)), LOW to HIGH being the range "
            "that matters in all images"
        )
    return f"its pixels are {dtype}, the model takes uint8, 0 to 255; scale them: {remedy}"
