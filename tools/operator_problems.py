"""What the operator is timed on: shapes with what they cost, and inputs of both entries."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detectron2_ddetr.modeling.memory import cell_centres
from detectron2_ddetr.modeling.ms_deform_attn import MSDeformAttn
from detectron2_ddetr.modeling.ops.ms_deform_attn_pytorch import locations_from_offsets

HEADS, CHANNELS, POINTS = 8, 32, 4


@dataclass(frozen=True)
class Shape:
    """What is read, and by how many queries; None: by one of each cell, as in the encoder."""

    name: str
    levels: tuple[tuple[int, int], ...]
    queries: int | None = None
    batch: int = 1

    @property
    def cells(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def num_queries(self) -> int:
        return self.cells if self.queries is None else self.queries

    @property
    def samples(self) -> int:
        return self.batch * self.num_queries * HEADS * len(self.levels) * POINTS

    def gflop(self, what: str) -> float:
        """Per channel of a sample 4 multiply-adds; backward 4 for dot products, 4 to scatter."""
        return self.samples * CHANNELS * 4 * 2 * (1 if what == "forward" else 3) / 1e9

    def megabytes(self, entry: str, what: str, itemsize: int) -> float:
        """
        Each tensor once, as if caches were endless; of `value` no more than what samples can touch.
        """
        value = self.batch * self.cells * HEADS * CHANNELS * itemsize
        touched = min(value, self.samples * 4 * CHANNELS * itemsize)
        output = self.batch * self.num_queries * HEADS * CHANNELS * itemsize
        if entry == "drop-in":
            samples, references = self.samples * 3 * 4, 0
        else:
            samples = self.samples * 3 * itemsize
            references = self.batch * self.num_queries * len(self.levels) * 2 * 4
        forward = touched + samples + references + output
        backward = forward + value + samples  # reads the same, and writes gradients
        return (forward if what == "forward" else forward + backward) / 1e6

    def __str__(self) -> str:
        return f"{self.name}: {self.batch} x {self.num_queries} queries, {self.cells} cells"


def pyramid(height: int, width: int, num_levels: int = 4) -> tuple[tuple[int, int], ...]:
    """Sizes of the levels of an image: strides 8, 16, 32, ..."""
    strides = [8 * 2**level for level in range(num_levels)]
    return tuple((math.ceil(height / s), math.ceil(width / s)) for s in strides)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("a", pyramid(800, 1333), batch=2),
        Shape("a1", pyramid(800, 1333)),
        Shape("b300", pyramid(800, 1333), queries=300),
        Shape("b900", pyramid(800, 1333), queries=900),
        Shape("c", pyramid(640, 640)),
        Shape("c300", pyramid(640, 640, 3), queries=300),
        Shape("d", pyramid(800, 1333), batch=16),
    )
}
LONG_SIDES = (320, 480, 640, 800, 1066, 1333)


class Levels(NamedTuple):
    """Where the levels are, in the forms that implementations ask for."""

    sizes: list[tuple[int, int]]  # (H, W)
    shapes: Tensor  # (L, 2), the same
    starts: Tensor  # (L,), first cell of each


class Problem(NamedTuple):
    """Inputs of both entries, by name, in the dtype that ours reads."""

    levels: Levels
    inputs: dict[str, list[Tensor]]
    grad_output: Tensor


def make_problem(shape: Shape, dtype: torch.dtype, device: torch.device) -> Problem:
    random = torch.Generator().manual_seed(0)
    sizes = list(shape.levels)
    num_levels, num_points = len(sizes), len(sizes) * POINTS
    per_query = (shape.batch, shape.num_queries, HEADS, num_points)

    if shape.queries is None:
        centres = cell_centres(sizes, torch.ones(shape.batch, num_levels, 2))
    else:
        centres = torch.rand(shape.batch, shape.queries, 2, generator=random)
    # A little aside: 16-bit offsets are often whole cells, and there the gradient jumps.
    aside = torch.tensor([(1e-3 / width, 1e-3 / height) for height, width in sizes])
    references = centres[:, :, None] + aside
    module = MSDeformAttn(HEADS * CHANNELS, num_levels, HEADS, POINTS)
    start = module.sampling_offsets.bias.detach().view(HEADS, num_points, 2)
    offsets = start + torch.randn(*per_query, 2, generator=random)
    logits = torch.randn(per_query, generator=random)
    value = torch.randn(shape.batch, shape.cells, HEADS, CHANNELS, generator=random)
    grad_output = torch.randn(*per_query[:2], HEADS * CHANNELS, generator=random)

    per_level = (num_levels, POINTS)
    locations = locations_from_offsets(references, offsets, sizes, [POINTS] * num_levels)
    drop_in = [locations.unflatten(3, per_level), logits.softmax(-1).unflatten(3, per_level)]
    drop_in = [value.to(device, dtype), *(x.to(device) for x in drop_in)]
    fused = [drop_in[0], references.to(device), *(x.to(device, dtype) for x in (offsets, logits))]
    starts = [0, *itertools.accumulate(height * width for height, width in sizes)][:-1]
    levels = Levels(sizes, torch.tensor(sizes).to(device), torch.tensor(starts).to(device))
    return Problem(levels, {"drop-in": drop_in, "fused": fused}, grad_output.to(device, dtype))
