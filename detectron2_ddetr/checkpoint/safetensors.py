"""The format of .safetensors files: the length of a JSON header, the header, then the tensors."""

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import InputError
from .atomic import written_atomically

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = "__metadata__"
#: More than the header of any model; its length is the first thing that a damaged file gets wrong.
_MAX_HEADER = 100_000_000


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is one."""
    return re.match(rb"(?s).....\x00\x00\x00\{", start) is not None


def load_safetensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """
    Returns:
        The tensors in the order of the file, and its metadata.

    Raises:
        InputError: if the header is not sound, or the tensors are not, without gap or overlap, all
            of what follows it.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header, begin = _read_header(file, size, path)
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict):
            raise _damaged(path, f"its {_METADATA} is a {type(metadata).__name__}")
        entries = {name: _checked_entry(name, entry, path) for name, entry in header.items()}
        places = sorted((start, end) for _, _, start, end in entries.values())
        ends = [0, *(end for _, end in places)]
        if [start for start, _ in places] != ends[:-1] or begin + ends[-1] != size:
            raise _damaged(
                path, f"its tensors do not lie one after another in the {size - begin} bytes of it"
            )
        tensors = {}
        for name, (dtype, shape, start, end) in entries.items():
            file.seek(begin + start)
            data = bytearray(file.read(end - start))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensors[name] = flat.reshape(shape)
    return tensors, metadata


def _read_header(file: BinaryIO, size: int, path: str) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER):
        raise _damaged(path, f"its header would have {length} of {size} bytes")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is a {type(header).__name__}")
    return header, 8 + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _checked_entry(name: str, entry: Any, path: str) -> tuple[torch.dtype, list[int], int, int]:
    """(type, shape, first byte, byte after the last) of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name} is described by {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise InputError(
            f"{path}: {name} is of type {dtype}; known are {', '.join(_TYPES)}: save it as one"
        )
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise _damaged(path, f"{name} has shape {shape} and offsets {offsets}")
    if offsets[1] - offsets[0] != math.prod(shape) * _TYPES[dtype].itemsize:
        raise _damaged(path, f"{name}, {dtype} of shape {shape}, lies at {offsets}")
    return _TYPES[dtype], shape, *offsets


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**48 for x in value)


def _damaged(path: str, why: str) -> InputError:
    return InputError(
        f"{path}: a safetensors file that is damaged or incomplete: {why}. Copy or download it "
        "again"
    )


def save_safetensors(tensors: Mapping[str, Tensor], path: str, metadata: Mapping[str, str]) -> None:
    """
    Writes atomically, what is larger in a number first, as readers that map the file want it.

    Raises:
        InputError: for a type of numbers that the format does not have here.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    offset = 0
    for name in ordered:
        value = tensors[name]
        if value.dtype not in _NAMES:
            raise InputError(f"{path}: {name} is of type {value.dtype}, which has no name there")
        end = offset + value.numel() * value.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with written_atomically(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in ordered:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
