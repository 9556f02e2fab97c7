"""Detections in images as people have them: paths, folders, arrays, tensors."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .config import load_config
from .data.dataset_mapper import DeformableDETRDatasetMapper
from .data.given_images import GivenImage, given_images, is_one_image
from .engine.trained_model import (
    files_of_run,
    load_trained_model,
    require_weights,
    with_weights,
)
from .errors import InputError
from .modeling.tiles import cut_by_window, one_of_each, tile_windows
from .toolbox import Boxes, CfgNode, Instances, configurable

#: Smaller tiles, px, or more overlap, would be thousands.
MIN_TILE, MAX_OVERLAP = 32, 0.9


class Predictor:
    """
    A trained model for images of any kind and size.

    ``Predictor.from_run("output/first")("photo.jpg")`` is all that it takes.

    The images go through what those of an evaluation go through, so that detections are the same.
    Only images that have one size then share a batch: others would be padded, which changes the
    result. So a batch gives what its images give one by one, but for the rounding of sums: 1e-3 px
    in the boxes, 1e-5 in the scores.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        mapper: DeformableDETRDatasetMapper,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | str] | None = None,
        array_format: str = "BGR",
        batch_size: int = 1,
        score_threshold: float = 0.0,
        max_detections: int | None = None,
        classes: Sequence[str] | None = None,
        tiles: int | None = None,
        tile_overlap: float = 0.25,
    ):
        """
        ``Predictor(cfg)`` takes model, classes and sizes from a config with MODEL.WEIGHTS; the
        arguments from `array_format` on may be given with it.

        Args:
            model: in evaluation mode; list of dicts -> list of {"instances": Instances}.
            mapper: of an evaluation; what it does with the pixels is done with all images.
            class_names: by class number; None if they are not known.
            category_ids: of these classes in the data that the model was trained on.
            array_format: "BGR", as in detectron2 and OpenCV, or "RGB": the order of the channels of
                arrays and tensors. Files and images of Pillow say their own.
            batch_size: so many images at a time.
            score_threshold: detections below it are left out.
            max_detections: at most so many of an image, the best; None for as many as the model
                gives.
            classes: names of those to keep; None for all.
            tiles: side, px, of the tiles that an image longer than that is looked at in, beside
                the whole of it; see :func:`.tiles.one_of_each` for how the detections become one
                set. An object that is larger than the overlap is found in the whole image. None
                for no tiles.
            tile_overlap: the share of a tile that its neighbour has too, at least.

        Raises:
            InputError: for a value that cannot be; for names that the model does not have.
        """
        if array_format not in ("BGR", "RGB"):
            raise InputError(f"array_format must be 'BGR' or 'RGB', got {array_format!r}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be from 0 to 1, got {score_threshold:g}")
        if max_detections is not None and max_detections < 1:
            raise InputError(f"max_detections must be at least 1, got {max_detections}")
        if tiles is not None and tiles < MIN_TILE:
            raise InputError(f"tiles must be at least {MIN_TILE} px, got {tiles}")
        if not 0 <= tile_overlap <= MAX_OVERLAP:
            raise InputError(f"tile_overlap must be from 0 to {MAX_OVERLAP}, got {tile_overlap:g}")
        self.model = model
        self.mapper = mapper
        self.class_names = None if class_names is None else list(class_names)
        self.category_ids = None if category_ids is None else list(category_ids)
        self.array_format = array_format
        self.batch_size = batch_size
        self.score_threshold = score_threshold
        self.max_detections = max_detections
        self.tiles = tiles
        self.tile_overlap = tile_overlap
        self._kept_labels = None if classes is None else self._labels_of(classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        require_weights(cfg)
        trained = load_trained_model(cfg)
        model = trained.model.for_inference(int8=cfg.TEST.INT8)
        mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
        return {**trained._asdict(), "model": model, "mapper": mapper}

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike,
        weights: str | None = None,
        opts: Sequence[Any] = (),
        **kwargs,
    ) -> "Predictor":
        """
        Of a training, by what its folder has.

        Args:
            folder: what OUTPUT_DIR was.
            weights: see :func:`.trained_model.files_of_run`.
            opts: KEY VALUE pairs that change the config, such as ["MODEL.DEVICE", "cpu"].
            kwargs: of :class:`Predictor`, from `array_format` on.
        """
        config_file, weights = files_of_run(os.fspath(folder), weights)
        return cls(load_config(config_file, with_weights(opts, weights)), **kwargs)

    def __call__(self, images: Any) -> Instances | list[Instances]:
        """
        Args:
            images: a path, an image of Pillow, an array (H, W, 3) or a tensor (3, H, W), of uint8;
                or what stands for several: a folder, a pattern, an array or tensor of four
                dimensions, a list or another iterable of any of these.

        Returns:
            On the CPU, the best first: "pred_boxes", (x1, y1, x2, y2) in px of the image as it was
            given, upright; "scores"; "pred_classes". A list of them if `images` are several.

        Raises:
            InputError: names the image that cannot be read.
        """
        results = [instances for _, instances in self._each(images)]
        return results[0] if is_one_image(images) else results

    def plain(self, images: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """
        The same as numbers and text, ready for json.

        Returns:
            dict: or a list of them if `images` are several. The keys are:

            * "image": its path, or "image 3" if it is the fourth of several.
            * "width", "height": of it, px.
            * "detections": a list, the best first, of {"class": its name, "label": its number,
              "score", "box": [x1, y1, x2, y2] in px}.
        """
        results = [
            {
                "image": image.name,
                "width": instances.image_size[1],
                "height": instances.image_size[0],
                "detections": self._plain_detections(instances),
            }
            for image, instances in self._each(images)
        ]
        return results[0] if is_one_image(images) else results

    def detect(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Instances]:
        """
        What :meth:`__call__` does with images that are read.

        Args:
            images: (H, W, 3) uint8 RGB each.
            names: what messages call them.
        """
        if self.tiles is None:
            return [self._select(found) for found in self._detect(images, names)]
        return [self._select(self._in_tiles(*pair)) for pair in zip(images, names)]

    def _in_tiles(self, image: np.ndarray, name: str) -> Instances:
        """What the model finds in the whole image and in its tiles, each object once."""
        height, width = image.shape[:2]
        windows = tile_windows(height, width, self.tiles, self.tile_overlap)
        found = self._detect([image], [name])
        if len(windows) == 1:
            return found[0]
        for some in batches(windows, self.batch_size):
            tiles = [image[y0:y1, x0:x1] for x0, y0, x1, y1 in some]
            found += self._detect(tiles, [name] * len(some))
        windows = [(0, 0, width, height), *windows]
        shifts = [torch.tensor(window[:2] * 2) for window in windows]
        moved = [f.pred_boxes.tensor + shift for f, shift in zip(found, shifts)]
        cut = [cut_by_window(b, window, height, width) for b, window in zip(moved, windows)]
        boxes, scores = torch.cat(moved), torch.cat([f.scores for f in found])
        labels = torch.cat([f.pred_classes for f in found])
        numbers = torch.arange(len(windows)).repeat_interleave(
            torch.tensor([len(f) for f in found])
        )
        keep = one_of_each(boxes, scores, labels, numbers, torch.cat(cut))
        merged = Instances((height, width))
        merged.pred_boxes, merged.scores = Boxes(boxes[keep]), scores[keep]
        merged.pred_classes = labels[keep]
        return merged

    def _each(self, images: Any) -> Iterator[tuple[GivenImage, Instances]]:
        for some in batches(given_images(images), self.batch_size):
            pixels = [image.pixels(self.array_format) for image in some]
            yield from zip(some, self.detect(pixels, [image.name for image in some]))

    def _detect(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Instances]:
        """All that the model finds, in batches of one size each."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        samples = [self._sample(image, name) for image, name in zip(images, names)]
        for number, sample in enumerate(samples):
            by_size.setdefault(tuple(sample["image"].shape), []).append(number)
        results: dict[int, Instances] = {}
        for numbers in by_size.values():
            for some in batches(numbers, self.batch_size):
                with torch.no_grad():
                    outputs = self.model([samples[number] for number in some])
                results |= {n: out["instances"].to("cpu") for n, out in zip(some, outputs)}
        return [results[number] for number in range(len(images))]

    def _sample(self, image: np.ndarray, name: str) -> dict[str, Any]:
        """The input of the model."""
        height, width = image.shape[:2]
        ordered = image[..., ::-1] if self.mapper.image_format == "BGR" else image
        resized, _ = self.mapper.augmented(np.ascontiguousarray(ordered), name)
        return {"image": resized, "height": height, "width": width, "file_name": name}

    def _select(self, instances: Instances) -> Instances:
        """Those of them that are wanted."""
        keep = instances.scores >= self.score_threshold
        if self._kept_labels is not None:
            keep &= torch.isin(instances.pred_classes, self._kept_labels)
        return instances[keep.nonzero()[: self.max_detections, 0]]

    def _plain_detections(self, instances: Instances) -> list[dict[str, Any]]:
        columns = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
        return [
            {"class": self.name_of(label), "label": label, "score": score, "box": box}
            for box, score, label in zip(*(column.tolist() for column in columns))
        ]

    def name_of(self, label: int) -> str:
        """The name of a class; its number where there is none."""
        return self.class_names[label] if self.class_names else str(label)

    def _labels_of(self, classes: Sequence[str]) -> torch.Tensor:
        known = self.class_names or []
        if unknown := [name for name in classes if name not in known]:
            has = f"has {', '.join(known)}" if known else "does not know the names of its classes"
            raise InputError(f"there is no class {unknown[0]!r}: the model {has}")
        return torch.tensor([known.index(name) for name in classes], dtype=torch.int64)


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items each, in their order; the last may be shorter."""
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        yield some
