"""Reading images."""

import numpy as np
from PIL import Image, ImageOps

from .file_io import PathManager


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an (H, W, C) uint8 image as "RGB", "BGR", "L" or as it is, upright as EXIF says."""
    if format not in (None, "RGB", "BGR", "L"):
        raise NotImplementedError(f"format {format!r} needs detectron2")
    with PathManager.open(file_name, "rb") as f:
        image = ImageOps.exif_transpose(Image.open(f))
        image = np.asarray(image.convert("RGB" if format == "BGR" else format or image.mode))
    return {"BGR": image[..., ::-1], "L": image[..., None]}.get(format, image)
