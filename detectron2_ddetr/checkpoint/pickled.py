"""
Pickles of numpy arrays, such as detectron2's `.pkl` files, read without running anything.

A pickle calls what it names. Here every name it may use stands for a function of this file that
builds an array from bytes that are in the pickle, and any other name is refused.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = re.compile(r"[<>|=]?(f2|f4|f8|i1|i2|i4|i8|u1|b1)")


class NotDataError(pickle.UnpicklingError):
    """The pickle is more than plain data; says what it wants or holds."""


class _Numbers:
    """An array or dtype in the making; a pickle first creates it and then sets its state."""

    __slots__ = ("dtype", "value")

    def __init__(self, dtype: np.dtype | None = None, value: Tensor | None = None):
        self.dtype, self.value = dtype, value

    def __setstate__(self, state: Any) -> None:
        if self.dtype is not None:  # of a dtype: version, byte order, sub-array, names, fields, ...
            _, order, subarray, names, fields, *_ = state
            if (subarray, names, fields) != (None, None, None):
                raise NotDataError("holds an array of records")
            self.dtype = self.dtype.newbyteorder(order)
        else:  # of an array
            _, shape, dtype, is_fortran, data = state
            self.value = _tensor(data, dtype, shape, "F" if is_fortran else "C")


def _tensor(data: bytes | str, dtype: _Numbers, shape: tuple[int, ...], order: str) -> Tensor:
    """The numbers themselves; never more memory than the file has bytes for them."""
    if not isinstance(dtype, _Numbers) or dtype.dtype is None:
        raise pickle.UnpicklingError("an array without a type")
    if isinstance(data, str):  # of Python 2, read as latin1
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise NotDataError(f"holds an array of {type(data).__name__}s")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError(f"an array of shape {shape}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(
            f"an array of shape {shape} and type {dtype.dtype} with {len(data)} bytes"
        )
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    # A copy: writable, and in the byte order of this machine, as torch wants it.
    return torch.from_numpy(np.array(array, dtype=dtype.dtype.newbyteorder("="), order="C"))


def _dtype(name: str, *_: Any) -> _Numbers:
    if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise NotDataError(f"holds an array of type {name}")
    return _Numbers(np.dtype(name))


def _scalar(dtype: _Numbers, data: bytes | str) -> _Numbers:
    return _Numbers(value=_tensor(data, dtype, (), "C"))


def _from_buffer(data: bytes, dtype: _Numbers, shape: tuple[int, ...], order: str) -> _Numbers:
    return _Numbers(value=_tensor(data, dtype, shape, order))


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise NotDataError(f"wants to encode in {encoding}")
    return text.encode("latin1")


class _OrderedDict(dict):
    """Without attributes: state dicts carry metadata there, which nothing here needs."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Global:
    """What a name in a pickle becomes: callable, and nothing can be set on it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "function", function)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise NotDataError(f"wants to set {name} of a function")

    def __setstate__(self, state: Any) -> None:
        raise NotDataError("wants to set the state of a function")


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _Global(_Numbers),
    ("numpy", "dtype"): _Global(_dtype),
    ("collections", "OrderedDict"): _Global(_OrderedDict),
    ("_codecs", "encode"): _Global(_encode),
    ("__builtin__", "bytes"): _Global(lambda: b""),  # how protocol 2 writes empty ones
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global(lambda *_: _Numbers())
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global(_scalar)
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global(_from_buffer)


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Global:
        if (module, name) not in _GLOBALS:
            raise NotDataError(f"wants to call {module}.{name}")
        return _GLOBALS[module, name]


def load_pickle(path: str) -> Any:
    """
    The content of a pickle of numbers, strings, containers and numpy arrays of numbers.

    Returns:
        Arrays as tensors in the outermost containers: values of a dict, and of the dicts in it.

    Raises:
        NotDataError: when it holds or wants anything else.
        Exception: of any type, when the file is damaged or no pickle.
    """
    with open(path, "rb") as f:
        file = io.BytesIO(f.read())  # which gives no more bytes than it has, however many are asked
    # Every length and every slot of the memo must fit into the file, or the unpickler would make
    # room for what is not there.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in opcode.name and argument > count:
            raise pickle.UnpicklingError(f"slot {argument} of its memo after {count} steps")
    file.seek(0)
    content = _DataUnpickler(file, encoding="latin1").load()
    return _plain(content, depth=2)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, _Numbers):
        return value.value
    if isinstance(value, dict) and depth:
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    return value
