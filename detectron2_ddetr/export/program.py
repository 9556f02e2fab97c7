"""The program of `torch.export`: what all formats but TorchScript are made from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .graph import DetectorGraph

#: Of the example where any size is taken: larger than any stride, and no two numbers alike, which
#: a compiler takes for one.
EXAMPLE = (416, 544)


def example_inputs(size: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """
    Two images, the second with padding: torch makes a constant of what is 1.

    Args:
        size: (height, width), or None for :data:`EXAMPLE`.
    """
    height, width = size or EXAMPLE
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)
    return images, torch.tensor([(height, width), (height * 2 // 3, width * 3 // 4)])


def export_program(
    graph: DetectorGraph, size: Sequence[int] | None
) -> torch.export.ExportedProgram:
    """Of any number of images; of `size`, or of any."""
    dynamic = torch.export.Dim.DYNAMIC
    of_images = {0: dynamic} if size else {0: dynamic, 2: dynamic, 3: dynamic}
    return torch.export.export(
        graph, example_inputs(size), dynamic_shapes=(of_images, {0: dynamic})
    )


def smallest_side(program: torch.export.ExportedProgram) -> int:
    """The least height and width that a program of any size takes, px."""
    images = next(n for n in program.graph.nodes if n.name == "images")
    sides = [side for side in images.meta["val"].shape[2:] if isinstance(side, torch.SymInt)]
    return max([1, *(int(program.range_constraints[side.node.expr].lower) for side in sides)])
