"""Exported files in place of a model."""

import os

import numpy as np
import torch
import torch.nn.functional as F

from ..data.augmentation import ResizeShortSide
from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..errors import InputError
from ..inputs import describe
from ..predictor import Predictor
from ..toolbox import Boxes, Instances, T, detector_postprocess
from .description import Description
from .formats import load_program


def load_predictor(path: str | os.PathLike, **kwargs) -> Predictor:
    """
    A :class:`Predictor` of an exported file: the same calls, the same results.

    Args:
        path: of a file that `ddetr export` has written.
        kwargs: of :class:`Predictor`, from `array_format` on.

    Raises:
        MissingFileError, InputError: if it is none, or cannot be run here.
    """
    path = os.fspath(path)
    run, text = load_program(path)
    return predictor_of(run, Description.of_text(text, path), **kwargs)


def predictor_of(run, description: Description, **kwargs) -> Predictor:
    """Of a function as :class:`.graph.DetectorGraph` is one."""
    return Predictor(
        model=ExportedDetector(run, description),
        mapper=mapper_of(description),
        class_names=description.class_names,
        category_ids=description.category_ids,
        **kwargs,
    )


def mapper_of(description: Description) -> DeformableDETRDatasetMapper:
    """What is done to images, by what the description says."""
    if description.size:
        resize: T.Augmentation = FitInside(*description.size)
    else:
        said = description.preprocessing
        resize = ResizeShortSide((said["short_side"],), said["long_side"], said["rule"])
    return DeformableDETRDatasetMapper(is_train=False, augmentations=[resize], image_format="RGB")


class FitInside(T.Augmentation):
    """Resizes an image, as it is shaped, so that it just fits into a rectangle."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """`image` is (H, W, 3)."""
        height, width = image.shape[:2]
        scale = min(self.height / height, self.width / width)
        new = [max(round(side * scale), 1) for side in (height, width)]
        return T.ResizeTransform(height, width, *new)


class ExportedDetector:
    """A program in place of a :class:`SetDetector` in evaluation."""

    def __init__(self, run, description: Description):
        """
        Args:
            run: as :class:`.graph.DetectorGraph`.
            description: of it.
        """
        self.run, self.description = run, description

    @property
    def num_classes(self) -> int:
        return len(self.description.classes)

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: "image" (3, h, w) uint8 RGB; "height" and "width" wanted for the
                detections, by default those of "image".

        Returns:
            As :meth:`SetDetector.forward`.

        Raises:
            InputError: names an image that the program does not take.
        """
        images = [x["image"] for x in batched_inputs]
        sizes = torch.tensor([tuple(image.shape[1:]) for image in images])
        wanted = self.description.size or sizes.amax(0).tolist()
        self._check(batched_inputs, sizes)
        padded = torch.stack(
            [
                F.pad(image, (0, wanted[1] - image.shape[2], 0, wanted[0] - image.shape[1]))
                for image in images
            ]
        )
        results = []
        for sample, size, *found in zip(batched_inputs, sizes.tolist(), *self.run(padded, sizes)):
            instances = Instances(tuple(size))
            instances.pred_boxes, instances.scores = Boxes(found[0]), found[1]
            instances.pred_classes = found[2]
            height, width = (sample.get(key, n) for key, n in zip(("height", "width"), size))
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results

    def _check(self, batched_inputs: list[dict], sizes: torch.Tensor) -> None:
        size, smallest = self.description.size, self.description.smallest
        for number, (height, width) in enumerate(sizes.tolist()):
            if size and (height > size[0] or width > size[1]):
                limit = f"of at most {size[0]}x{size[1]} px (height x width)"
            elif not size and min(height, width) < smallest:
                limit = f"with sides of at least {smallest} px"
            else:
                continue
            raise InputError(
                f"{describe(number, batched_inputs[number])}: it is {height}x{width} px where the "
                f"exported program begins, which takes images {limit}; leave it out, or export "
                "with --size for images of this shape"
            )
