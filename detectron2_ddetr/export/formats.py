"""The formats, one module each, by the names that the command has for them."""

import os
import zipfile
from collections.abc import Callable
from types import ModuleType

from ..errors import InputError, MissingFileError
from . import aot_inductor, onnx_file, tensorrt, torch_export, torchscript

FORMATS: dict[str, ModuleType] = {
    "torch.export": torch_export,
    "aotinductor": aot_inductor,
    "torchscript": torchscript,
    "onnx": onnx_file,
    "tensorrt": tensorrt,
}


def is_exported(path: str) -> bool:
    """Whether it is called as an exported file is."""
    return path.endswith(tuple(form.SUFFIX for form in FORMATS.values()))


def load_program(path: str) -> tuple[Callable, str]:
    """
    What runs an exported file, and its description as text.

    Raises:
        MissingFileError, InputError: if there is none, or nothing here runs it.
    """
    return FORMATS[_format_of(path)].load(path)


def _format_of(path: str) -> str:
    """By what is in it: files of two formats end in .pt2."""
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: there is no such file; correct its path")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/data/aotinductor/" in name for name in names):
            return "aotinductor"
        if any("/code/" in name for name in names):
            return "torchscript"
        if any(name.endswith("/archive_format") for name in names):
            return "torch.export"
    elif path.endswith(onnx_file.SUFFIX):
        return "onnx"
    raise InputError(f"{path} is no file of `ddetr export`: name one that ends in .pt2, .ts, .onnx")
