"""A package of AOTInductor: a program that is compiled for the processor that it was made on."""

import os
import shutil
from collections.abc import Callable

import torch

from ..errors import InputError
from .description import KEY
from .graph import DetectorGraph

SUFFIX = ".pt2"


def refuse(graph: DetectorGraph, size: list[int] | None, precision: str) -> None:
    """
    Raises:
        InputError: where there is no C++ compiler.
    """
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) is None:
        raise InputError(
            f"AOTInductor compiles with a C++ compiler, and there is no {wanted}: install one, or "
            "name it in the environment variable CXX; --format torch.export needs none"
        )


def write(program: torch.export.ExportedProgram, path: str, text: str) -> None:
    """`text` becomes a part of the package."""
    from torch._inductor import aoti_compile_and_package  # slow to import

    aoti_compile_and_package(
        program, package_path=path, inductor_configs={"aot_inductor.metadata": {KEY: text}}
    )


def load(path: str) -> tuple[Callable, str]:
    """What runs it, and the text in it."""
    from torch._inductor import aoti_load_package

    package = aoti_load_package(path)
    return package, package.get_metadata().get(KEY, "")
