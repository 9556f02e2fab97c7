"""
Batches that travel from a data worker to the trainer as one tensor.

PyTorch sends every tensor through a file descriptor of its own. With an image, boxes and classes
for each of 64 images, and two batches in flight for each of 8 workers, that is more than the 1024
open files that a process may usually have; what follows is "received 0 items of ancdata" or a wait
without end.
"""

import io
import os
import pickle
import resource
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

_ALIGNMENT = 16  # bytes; no dtype has larger elements


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and collects them."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        # A subclass, or a tensor that is sparse or on a GPU, is pickled as PyTorch does it.
        if type(obj) is not Tensor or obj.layout != torch.strided or obj.device.type != "cpu":
            return None
        if obj.requires_grad or obj.is_quantized:
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Puts the tensors back."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]):
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self.tensors[pid]


def pack(batch: Any) -> tuple[bytes, Tensor]:
    """
    Anything that can be pickled, with all its tensors in one.

    Returns:
        What :func:`unpack` takes: the pickle without the data of the tensors, and those, (bytes,)
        uint8.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(batch)
    layout, end = [], 0
    for tensor in pickler.tensors:
        layout.append((end, tensor.dtype, tuple(tensor.shape)))
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    data = torch.empty(end, dtype=torch.uint8)
    for tensor, place in zip(pickler.tensors, _views(data, layout), strict=True):
        place.copy_(tensor)
    return pickle.dumps((layout, file.getvalue())), data


def unpack(packed: tuple[bytes, Tensor]) -> Any:
    """What was packed; its tensors are parts of the one that came."""
    layout, content = pickle.loads(packed[0])
    return _Unpickler(io.BytesIO(content), _views(packed[1], layout)).load()


def _views(data: Tensor, layout: list[tuple[int, torch.dtype, tuple[int, ...]]]) -> list[Tensor]:
    """The tensors that lie in `data`; `layout` has the first byte, dtype and shape of each."""
    return [
        data[start : start + dtype.itemsize * torch.Size(shape).numel()].view(dtype).view(shape)
        for start, dtype, shape in layout
    ]


def require_open_files(num_workers: int, *, loaders: int = 1) -> None:
    """
    Raises the soft limit of open files as far as it needs to be for data workers.

    Args:
        num_workers: of each loader.
        loaders: how many will be at work together: two in a training that evaluates, so that
            no evaluation finds too little when it begins.

    Raises:
        InputError: when the hard limit is lower; PyTorch's workers would end in the middle of a
            training, or be waited for without end.
    """
    # Measured: a worker takes 4.5 in this process for its queues, and one for each batch on its
    # way; and there are checkpoints, logs and libraries.
    needed = len(os.listdir("/dev/fd")) + loaders * (8 * num_workers + 16)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if num_workers == 0 or soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise InputError(
            f"DATALOADER.NUM_WORKERS {num_workers} needs about {needed} open files, the limit of "
            f"this process is {hard}: raise it before the start (ulimit -n {needed}, or the "
            "container's or system's hard limit), or set DATALOADER.NUM_WORKERS lower; 0 needs none"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
