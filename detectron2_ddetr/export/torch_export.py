"""A program of `torch.export`, for Python with PyTorch and this package's operator."""

from collections.abc import Callable

import torch

from .description import KEY
from .graph import DetectorGraph

SUFFIX = ".pt2"


def refuse(graph: DetectorGraph, size: list[int] | None, precision: str) -> None:
    """There is nothing that it cannot hold."""


def write(program: torch.export.ExportedProgram, path: str, text: str) -> None:
    """`text` goes into the file, beside the program."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of source, by their paths on this machine
    torch.export.save(program, path, extra_files={KEY: text})


def load(path: str) -> tuple[Callable, str]:
    """What runs it, and the text in it."""
    extra = {KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), extra[KEY]
