"""A program of `torch.jit.trace`, for Python and C++ with PyTorch and this package's operator."""

import warnings
from collections.abc import Callable

import torch

from ..backbones.dat import DATBackbone
from ..errors import InputError
from .description import KEY
from .graph import DetectorGraph
from .program import example_inputs

SUFFIX = ".ts"


def refuse(graph: DetectorGraph, size: list[int] | None, precision: str) -> None:
    """
    Raises:
        InputError: for DAT.
    """
    if any(isinstance(m, DATBackbone) for m in graph.modules()):
        raise InputError(
            "tracing makes constants of the number of images and windows of DAT: take --format "
            "torch.export"
        )


def trace(graph: DetectorGraph, size: list[int] | None) -> torch.jit.ScriptModule:
    """
    Of any number of images of any size.

    The graph takes and returns tensors only, so that it needs no adapter: detectron2's
    TracingAdapter makes such a function of a model, too, but of a fixed number of images.
    """
    with warnings.catch_warnings():
        # tests/test_tracing.py looks at what becomes a constant; here it is what belongs to the
        # model. That tracing is deprecated is known.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(graph, example_inputs(size), check_trace=False)


def write(program: torch.jit.ScriptModule, path: str, text: str) -> None:
    """`text` goes into the file, beside the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(program, path, _extra_files={KEY: text})


def load(path: str) -> tuple[Callable, str]:
    """What runs it, and the text in it."""
    extra = {KEY: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    text = extra[KEY]
    return program, text.decode() if isinstance(text, bytes) else text
