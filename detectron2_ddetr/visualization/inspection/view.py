"""One image of a captured forward pass, in pixels of the image as it is in its file."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...modeling import Capture, box_cxcywh_to_xyxy
from ..drawing import class_name


class Points(NamedTuple):
    """
    What one query of a layer reads.

    Attributes:
        xy: (K, 2), px of the image; outside of it nothing is read.
        weights: (K,), their sum is 1: each head has an equal share.
        levels: (K,) int.
        reference: (2,), (x, y), or (4,), (cx, cy, w, h), px.
    """

    xy: np.ndarray
    weights: np.ndarray
    levels: np.ndarray
    reference: np.ndarray


class Detection(NamedTuple):
    """A class that a query has found."""

    query: int
    label: int
    score: float


class View(NamedTuple):
    """
    Attributes:
        image: (H, W, 3) uint8 RGB, of the size that all pixels here are of.
        captured: the forward pass.
        index: which image of the batch it is.
        class_names: by class number; empty if they are not known.
    """

    image: np.ndarray
    captured: Capture
    index: int = 0
    class_names: tuple[str, ...] = ()

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(H_l, W_l) of each level."""
        return self.captured.memory.spatial_shapes

    def to_pixels(self, fractions: Tensor) -> np.ndarray:
        """(..., 2 or 4) of the valid image, (x, y) pairs or (cx, cy, w, h), -> px."""
        height, width = self.image.shape[:2]
        pairs = fractions.shape[-1] // 2
        return _numpy(fractions) * np.array((width, height) * pairs, dtype=np.float64)

    def points(self, kind: str, layer: int, query: int) -> Points:
        """Of a layer of the "encoder" or the "decoder"."""
        record = self.captured.attention[kind, layer]
        # One query of all images, which the valid parts of the levels belong to.
        locations = self.captured.in_image(record.sampling_locations[:, query])[self.index]
        weights = _numpy(record.attention_weights[self.index, query])  # (M, L, P), M in all
        levels = np.broadcast_to(np.arange(weights.shape[1])[:, None], weights.shape)
        return Points(
            self.to_pixels(locations).reshape(-1, 2),
            weights.ravel() / len(weights),
            levels.ravel(),
            self.reference(kind, layer, query),
        )

    def attention_map(self, kind: str, layer: int, query: int) -> np.ndarray:
        """(h, w), of DETR: what a query reads of each cell of the image, the mean over heads."""
        weights = self.captured.attention[kind, layer].weights([query])[self.index, :, 0].mean(0)
        columns, rows = self.valid_cells(0)
        return _numpy(weights.unflatten(0, self.shapes[0]))[:rows, :columns]

    def reference(self, kind: str, layer: int, query: int) -> np.ndarray:
        """What the query looks around: (2,), (x, y), or (4,), (cx, cy, w, h), px."""
        references = self.captured.attention[kind, layer].level_reference_points
        ratio = self.captured.memory.valid_ratios[self.index, 0]
        reference = references[self.index, query, 0]
        return self.to_pixels(reference / ratio.repeat(len(reference) // 2))

    def cell_at(self, x: float, y: float, level: int) -> int:
        """The query of an encoder layer whose cell of `level` holds the pixel (x, y)."""
        height, width = self.image.shape[:2]
        columns, rows = self.valid_cells(level)
        column = min(max(int(x / width * columns), 0), columns - 1)
        row = min(max(int(y / height * rows), 0), rows - 1)
        start = sum(h * w for h, w in self.shapes[:level])
        return start + row * self.shapes[level][1] + column

    def valid_cells(self, level: int) -> tuple[int, int]:
        """(columns, rows) of a level that are image, not padding."""
        height, width = self.shapes[level]
        share_x, share_y = self.captured.memory.valid_ratios[self.index, level].tolist()
        return round(share_x * width), round(share_y * height)

    def boxes(self, layer: int) -> np.ndarray:
        """(Q, 4), (x1, y1, x2, y2) px, of a decoder layer."""
        boxes = self.captured.layer_outputs(layer)["pred_boxes"][self.index]
        return self.to_pixels(box_cxcywh_to_xyxy(boxes.float()))

    def scores(self, layer: int) -> Tensor:
        """(Q, K) in [0, 1], of a decoder layer."""
        logits = self.captured.layer_outputs(layer)["pred_logits"][self.index]
        return self.captured.class_probability(logits)

    def detection_of(self, query: int, layer: int) -> Detection:
        """The best class of a query."""
        score, label = self.scores(layer)[query].max(0)
        return Detection(query, int(label), float(score))

    def detections(self, score_threshold: float = 0.0) -> list[Detection]:
        """Of the last layer, one of each query that reaches the score, best first."""
        layer = self.captured.num_layers("decoder") - 1
        scores = self.scores(layer).max(1).values
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        return [self.detection_of(q, layer) for q in order if scores[q] >= score_threshold]

    def say(self, detection: Detection) -> str:
        """Class and score."""
        return f"{class_name(detection.label, self.class_names)} {detection.score:.2f}"


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
