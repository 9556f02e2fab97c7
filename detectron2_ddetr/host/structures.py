"""Boxes, padded image batches and per-image instances."""

from enum import IntEnum
from typing import Any, Iterator

import numpy as np
import torch
from torch import Tensor


class BoxMode(IntEnum):
    """How four numbers describe a box; detectron2 has more modes."""

    XYXY_ABS = 0
    XYWH_ABS = 1

    @staticmethod
    def convert(box, from_mode: "BoxMode", to_mode: "BoxMode"):
        """Convert a 4-tuple, a 4-list or an (N, 4) array or tensor; the type is kept."""
        if from_mode == to_mode:
            return box
        boxes = torch.as_tensor(box).view(-1, 4).clone()
        boxes[:, 2:] += boxes[:, :2] if from_mode == BoxMode.XYWH_ABS else -boxes[:, :2]
        if isinstance(box, (list, tuple)):
            return type(box)(boxes[0].tolist())
        return boxes.numpy() if isinstance(box, np.ndarray) else boxes


class Boxes:
    """An (N, 4) float32 tensor of (x1, y1, x2, y2) boxes that can be indexed like one."""

    def __init__(self, tensor: Tensor):
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        self.tensor = tensor if tensor.numel() else tensor.reshape(-1, 4)
        assert self.tensor.dim() == 2 and self.tensor.size(-1) == 4, self.tensor.size()

    def to(self, device: torch.device) -> "Boxes":
        return Boxes(self.tensor.to(device=device))

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip in place to `box_size`, (height, width)."""
        assert torch.isfinite(self.tensor).all(), "Box tensor contains infinite or NaN!"
        sides, ends = self.tensor.unbind(1), (box_size[1], box_size[0]) * 2
        self.tensor = torch.stack([side.clamp(0, end) for side, end in zip(sides, ends)], dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Return an (N,) mask, True where both sides exceed `threshold`."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __getitem__(self, item) -> "Boxes":
        return Boxes(self.tensor[item].view(1, -1) if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensor)


class ImageList:
    """Images of true (height, width) `image_sizes`, padded into one tensor (N, ..., H, W)."""

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor, self.image_sizes = tensor, image_sizes

    @staticmethod
    def from_tensors(tensors, size_divisibility=0, pad_value=0.0, padding_constraints=None):
        """Pad at the bottom and on the right to the common size, rounded up."""
        if padding_constraints:
            raise NotImplementedError("padding_constraints need detectron2")
        sizes, stride = [tuple(t.shape[-2:]) for t in tensors], max(size_divisibility, 1)
        size = [-(-max(side) // stride) * stride for side in zip(*sizes)]
        padded = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], *size), pad_value)
        for i, (tensor, (h, w)) in enumerate(zip(tensors, sizes)):
            padded[i, ..., :h, :w].copy_(tensor)
        return ImageList(padded, sizes)


class Instances:
    """Fields of equal length that describe the objects of one image of size (height, width)."""

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        self._image_size = image_size
        for name, value in kwargs.items():
            setattr(self, name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        lengths = {len(v) for v in self.get_fields().values()}
        assert name[0] == "_" or lengths <= {len(val)}, f"{name}: length {len(val)}, not {lengths}"
        super().__setattr__(name, val)

    def get_fields(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        fields = self.get_fields().items()
        moved = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in fields}
        return Instances(self._image_size, **moved)

    def __getitem__(self, item) -> "Instances":
        item = slice(i := range(len(self))[item], i + 1) if isinstance(item, int) else item
        return Instances(self._image_size, **{k: v[item] for k, v in self.get_fields().items()})

    def __len__(self) -> int:
        return len(next(iter(self.get_fields().values())))
