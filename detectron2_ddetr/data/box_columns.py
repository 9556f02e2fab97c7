"""The boxes of a data set in columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..toolbox import BoxMode


@dataclass
class BoxColumns:
    """The annotations of a list of dataset dicts, as A rows."""

    #: (A,) int64 place of the image, and class number
    image: np.ndarray
    category: np.ndarray
    #: (A, 4) float64 x, y, width, height, px
    boxes: np.ndarray
    #: (A,) bool
    crowd: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "BoxColumns":
        return BoxColumns(*(column[rows] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.image)


def boxes_of(dataset_dicts: Sequence[dict[str, Any]]) -> BoxColumns:
    """
    Args:
        dataset_dicts: sound; "annotations" may be missing.
    """
    rows = (
        (place, a["category_id"], *a["bbox"], a["bbox_mode"] == BoxMode.XYXY_ABS)
        + (a.get("iscrowd") or 0,)
        for place, dataset_dict in enumerate(dataset_dicts)
        for a in dataset_dict.get("annotations") or ()
    )
    table = np.fromiter(chain.from_iterable(rows), dtype=np.float64).reshape(-1, 8)
    boxes, corners = table[:, 2:6], table[:, 6] > 0
    boxes[corners, 2:] -= boxes[corners, :2]
    integers = table[:, :2].astype(np.int64)
    return BoxColumns(integers[:, 0], integers[:, 1], boxes, table[:, 7] > 0)
