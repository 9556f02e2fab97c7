"""An ONNX file of standard operators, for onnxruntime and other runtimes without PyTorch."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from ..backbones.dat import DATBackbone
from ..errors import InputError
from ..modeling import GRID_SAMPLE_DECOMPOSITIONS
from ..modeling.bilinear import GATHER_DECOMPOSITIONS
from .description import KEY
from .graph import DetectorGraph

SUFFIX = ".onnx"
#: Of inputs and outputs; D detections of each image, at most TEST.DETECTIONS_PER_IMAGE.
AXES = {
    "images": ("batch", 3, "height", "width"),
    "sizes": ("batch", 2),
    "boxes": ("batch", "detections", 4),
    "scores": ("batch", "detections"),
    "labels": ("batch", "detections"),
}


def require_packages(*names: str) -> None:
    """
    Raises:
        InputError: names what is not installed.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"an ONNX file needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )


def refuse(graph: DetectorGraph, size: list[int] | None, precision: str) -> None:
    """
    Raises:
        InputError: for packages that are missing, and what an ONNX file cannot hold.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    if precision == "bfloat16":
        raise InputError(
            "onnxruntime has no convolutions in bfloat16 on CPUs, so that the file could not be "
            "compared with the model: take --precision float16, or --format torch.export"
        )
    if size is None and any(isinstance(m, DATBackbone) for m in graph.modules()):
        raise InputError(
            "the windows of DAT do not go into an ONNX file of any image size (what is padded to "
            "whole windows is not cut off again): give --size HEIGHT WIDTH, or take --format "
            "torch.export"
        )


def write(program: torch.export.ExportedProgram, path: str, text: str) -> None:
    """`text` goes into the file's metadata."""
    save(program, GRID_SAMPLE_DECOMPOSITIONS, path, text)


def save(program: torch.export.ExportedProgram, decompositions: dict, path: str, text: str) -> None:
    """`decompositions` are of the operator of this package, which ONNX does not know."""
    program = program.run_decompositions(decompositions | GATHER_DECOMPOSITIONS)
    names = list(AXES)
    onnx = torch.onnx.export(
        program, dynamo=True, verbose=False, optimize=False, input_names=names[:2],
        output_names=names[2:],
    )  # fmt: skip
    graph = onnx.model.graph
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)(
            [
                name if isinstance(name, int) or not isinstance(old, int) else old
                for name, old in zip(AXES[value.name], value.shape)
            ]
        )
    for node in graph:
        node.metadata_props.clear()  # lines of source, by their paths on this machine
    onnx.model.metadata_props[KEY] = text
    onnx.save(path)


def load(path: str) -> tuple[Callable, str]:
    """
    What runs it, in onnxruntime on the CPU, and the text in it.

    Raises:
        InputError: if onnxruntime is not there, or cannot run it.
    """
    require_packages("onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (
        states.Fail,
        states.InvalidGraph,
        states.InvalidProtobuf,
        states.NotImplemented,
    ) as error:
        raise InputError(f"{path}: onnxruntime cannot run it ({error})") from error

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return tuple(map(torch.from_numpy, found))

    return run, session.get_modelmeta().custom_metadata_map.get(KEY, "")
