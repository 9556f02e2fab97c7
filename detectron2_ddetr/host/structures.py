"""Boxes, padded image batches and per-image instances."""

import itertools
from enum import IntEnum, unique
from typing import Any, Iterator

import numpy as np
import torch
from torch import Tensor


@unique
class BoxMode(IntEnum):
    """How four numbers describe a box. Only the first two can be converted here."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box, from_mode: "BoxMode", to_mode: "BoxMode"):
        """Convert a 4-tuple, a 4-list or an (N, 4) array or tensor; the type is kept."""
        if from_mode == to_mode:
            return box
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(
                f"converting {from_mode!r} to {to_mode!r} needs detectron2; "
                "the embedded host knows XYXY_ABS and XYWH_ABS"
            )
        single = isinstance(box, (list, tuple))
        if single:
            assert len(box) == 4, f"a box needs 4 numbers, got {len(box)}"
            result = torch.tensor(box)[None]
        else:
            result = torch.from_numpy(box).clone() if isinstance(box, np.ndarray) else box.clone()
        sign = 1 if from_mode == BoxMode.XYWH_ABS else -1
        result[:, 2:] += sign * result[:, :2]
        if single:
            return type(box)(result[0].tolist())
        return result.numpy() if isinstance(box, np.ndarray) else result


class Boxes:
    """An (N, 4) float32 tensor of (x1, y1, x2, y2) boxes that can be indexed like one."""

    def __init__(self, tensor: Tensor):
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.size(-1) == 4, tensor.size()
        self.tensor = tensor

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device) -> "Boxes":
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """Return the (N,) areas."""
        widths, heights = (self.tensor[:, 2:] - self.tensor[:, :2]).unbind(1)
        return widths * heights

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip in place to `box_size`, (height, width)."""
        assert torch.isfinite(self.tensor).all(), "Box tensor contains infinite or NaN!"
        h, w = box_size
        x, y = self.tensor[:, 0::2].clamp(0, w), self.tensor[:, 1::2].clamp(0, h)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=-1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Return an (N,) mask, True where both sides exceed `threshold`."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Scale in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __getitem__(self, item) -> "Boxes":
        selected = self.tensor[item].view(1, -1) if isinstance(item, int) else self.tensor[item]
        assert selected.dim() == 2, f"Indexing on Boxes with {item} failed to return a matrix!"
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        return cls(torch.cat([b.tensor for b in boxes_list]) if boxes_list else torch.empty(0))

    @property
    def device(self) -> torch.device:
        return self.tensor.device


class ImageList:
    """
    Images of different sizes padded into one tensor.

    Attributes:
        tensor: (N, ..., H, W), padded at the bottom and on the right.
        image_sizes: the true (height, width) of each image.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        h, w = self.image_sizes[idx]
        return self.tensor[idx, ..., :h, :w]

    def to(self, *args, **kwargs) -> "ImageList":
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad (..., H_i, W_i) tensors to their common size, rounded up to `size_divisibility`."""
        assert len(tensors) > 0 and isinstance(tensors, (tuple, list))
        assert all(t.shape[:-2] == tensors[0].shape[:-2] for t in tensors), "channels differ"
        if (padding_constraints or {}).get("square_size", 0) > 0:
            raise NotImplementedError("square padding needs detectron2")
        stride = (padding_constraints or {}).get("size_divisibility", size_divisibility)
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        size = [max(side) for side in zip(*sizes)]
        if stride > 1:
            size = [(side + stride - 1) // stride * stride for side in size]
        padded = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], *size), pad_value)
        for i, (image, (h, w)) in enumerate(zip(tensors, sizes)):
            padded[i, ..., :h, :w].copy_(image)
        return ImageList(padded, sizes)


class Instances:
    """Fields of equal length that describe the objects of one image of size (height, width)."""

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Cannot find field '{name}' in the given Instances!")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set a field; its length must agree with the others."""
        assert not self._fields or len(self) == len(
            value
        ), f"Adding a field of length {len(value)} to a Instances of length {len(self)}"
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return the dict of fields itself, not a copy."""
        return self._fields

    def _map(self, func) -> "Instances":
        return Instances(self._image_size, **{k: func(v) for k, v in self._fields.items()})

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        return self._map(lambda v: v.to(*args, **kwargs) if hasattr(v, "to") else v)

    def __getitem__(self, item) -> "Instances":
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError("Instances index out of range!")
            item = slice(item, None, len(self))
        return self._map(lambda v: v[item])

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Empty Instances does not support __len__!")

    def __iter__(self):
        raise NotImplementedError("`Instances` object is not iterable!")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """Concatenate instances of one image, field by field."""
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        assert all(i.image_size == first.image_size for i in instance_lists), "image sizes differ"
        result = Instances(first.image_size)
        for name, value in first.get_fields().items():
            values = [i.get(name) for i in instance_lists]
            if isinstance(value, Tensor):
                values = torch.cat(values)
            elif isinstance(value, list):
                values = list(itertools.chain(*values))
            elif hasattr(type(value), "cat"):
                values = type(value).cat(values)
            else:
                raise ValueError(f"Unsupported type {type(value)} for concatenation")
            result.set(name, values)
        return result

    def __str__(self) -> str:
        fields = ", ".join(f"{k}: {v}" for k, v in self._fields.items())
        h, w = self._image_size
        size = f"num_instances={len(self)}, image_height={h}, image_width={w}"
        return f"{type(self).__name__}({size}, fields=[{fields}])"

    __repr__ = __str__
