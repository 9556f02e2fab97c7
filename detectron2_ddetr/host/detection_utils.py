"""Reading images."""

import numpy as np
from PIL import Image, ImageOps


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an (H, W, 3) uint8 image as "RGB" or "BGR", upright as EXIF says."""
    if format not in ("RGB", "BGR"):
        raise NotImplementedError(f"format {format!r} needs detectron2")
    with Image.open(file_name) as image:
        array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return array[..., ::-1] if format == "BGR" else array
