"""
The fused operator as `torch.jit.trace` can record it.

A list of sizes is a constant of the traced program, and a `SymInt[]` ends the tracer with an
internal error. Sizes in a tensor stay sizes: so the program has the other entry in it.
"""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .ms_deform_attn_pytorch import locations_from_offsets


def unfused(
    spatial_shapes: Sequence[tuple[int | Tensor, int | Tensor]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    level_points: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """
    What the plain entry takes beside the value, from what the fused one takes.

    Nothing is checked here, where it would be once for all runs: the plain entry does, in each.

    Returns:
        spatial_shapes: (L, 2) int64 on the CPU.
        sampling_locations: (N, Q, M, L, P, 2), P being the most points of a level. Those that a
            level lacks lie outside, where nothing is read.
        attention_weights: (N, Q, M, L, P).
    """
    sizes = [size for pair in spatial_shapes for size in pair]
    shapes = torch.stack([s if isinstance(s, Tensor) else torch.tensor(s) for s in sizes])
    with warnings.catch_warnings():
        # That references are points or boxes belongs to the model, not to the image.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        locations = locations_from_offsets(references, offsets, spatial_shapes, level_points)
    attention = logits.to(references.dtype).softmax(-1)

    def by_level(x: Tensor, padding: float) -> Tensor:
        parts = x.split(level_points, dim=3)
        last_axes = [0, 0] * (x.dim() - 4)
        return torch.stack(
            [
                F.pad(part, (*last_axes, 0, max(level_points) - points), value=padding)
                for part, points in zip(parts, level_points)
            ],
            dim=3,
        )

    return shapes.view(-1, 2), by_level(locations, -2.0), by_level(attention, 0.0)
