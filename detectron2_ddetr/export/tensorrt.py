"""
An ONNX file with one node of TensorRT's own plugin for each deformable attention.

TensorRT is not here to run it: the shapes of these nodes are compared with what the plugin asks
for (multiscaleDeformableAttnPlugin in TensorRT's repository), and nothing else is.
"""

from typing import Any

import torch

from ..errors import InputError
from ..modeling.ops.traced import unfused
from . import onnx_file
from .graph import DetectorGraph

SUFFIX = ".onnx"
#: The plugin, and the domain that its node has, which TensorRT does not look at.
PLUGIN, DOMAIN = "MultiscaleDeformableAttnPlugin_TRT", "TRT"


def refuse(graph: DetectorGraph, size: list[int] | None, precision: str) -> None:
    """
    Raises:
        InputError: as :func:`.onnx_file.refuse` does, and for 16 bits.
    """
    if precision != "float32":
        raise InputError(
            f"--precision {precision}: TensorRT chooses its precision when it builds the engine "
            "(trtexec --fp16), and its plugin would round coordinates to 16 bits: leave it out"
        )
    onnx_file.refuse(graph, size, precision)


def _plugin_node(value, level_shapes, level_points, references, offsets, logits):
    """The fused operator by the node, whose arguments are those of the other operator."""
    # torch.tensor would not be functional.
    sides = [torch.full((), side, dtype=torch.int64) for side in level_shapes]
    sizes = list(zip(sides[::2], sides[1::2]))
    shapes, locations, weights = unfused(sizes, references, offsets, logits, level_points)
    areas = shapes.prod(1)
    starts = areas.cumsum(0) - areas
    output = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{PLUGIN}",
        (value, shapes.to(torch.int32), starts.to(torch.int32), locations, weights),
        dtype=value.dtype,
        shape=(value.shape[0], offsets.shape[1], *value.shape[2:]),
        version=1,
    )
    return output.flatten(2)


def write(program: torch.export.ExportedProgram, path: str, text: str) -> None:
    """`text` goes into the file's metadata."""
    fused = torch.ops.detectron2_ddetr.ms_deform_attn_fused.default
    onnx_file.save(program, {fused: _plugin_node}, path, text)


def checked_shapes(path: str) -> list[dict[str, list[Any]]]:
    """
    The shapes of the arguments of each node, which fit together.

    Raises:
        InputError: if there is no such node, or they do not.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {value.name: list(value.dims) for value in graph.initializer}
    names = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "weights")
    nodes = [
        dict(zip(names, [shapes.get(name, []) for name in node.input]))
        for node in graph.node
        if node.op_type == PLUGIN
    ]
    if not nodes:
        raise InputError(f"{path} has no node {PLUGIN}: the model has no deformable attention")
    for number, node in enumerate(nodes):
        value, levels, starts, locations, weights = node.values()
        fits = [len(shape) for shape in node.values()] == [4, 2, 1, 6, 5] and (
            value[2] == locations[2] == weights[2]
            and levels[0] == starts[0] == locations[3] == weights[3]
            and locations[4:] == [weights[4], 2]
            and locations[1] == weights[1]
        )
        if not fits:
            raise InputError(f"{path}: node {number} of {PLUGIN} has arguments of shapes {node}")
    return nodes
