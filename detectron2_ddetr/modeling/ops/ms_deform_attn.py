"""
The operator: its two entries, and what they mean to autograd, to compilers and to exporters.

Schemas, shapes of results, gradients and a PyTorch form are in Python; the compiled modules (csrc)
only add kernels for CPU and CUDA tensors. So a program exported or compiled without them runs with
them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import result_shapes  # noqa: F401  (tells compilers)
from .checks import (
    check_amounts,
    check_fused,
    check_fused_shapes,
    check_grad_output,
    check_memory,
    check_plain,
    check_positions,
    check_shapes,
    check_tensors,
    check_value,
    coordinate_dtype,
)
from .ms_deform_attn_pytorch import (
    gather_backward,
    gather_forward,
    grid_sample_forward,
    locations_from_offsets,
    step_and_base,
)
from .schemas import NAMESPACE, library
from .traced import unfused

_ops = torch.ops.detectron2_ddetr


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """
    Multi-scale deformable attention, Eq. (3) of the paper without its two projections.

    Sums are float32, or float64 for float64 values, and so are locations and weights inside.

    Args:
        value: (N, S, M, D), all levels flattened and concatenated, S = sum_l H_l * W_l. 16, 32 or
            64 bits; any strides, though one other than 1 along D costs a copy.
        spatial_shapes: (L, 2) integers, (H_l, W_l) -- height first; on the CPU or with `value`.
        sampling_locations: (N, Q, M, L, P, 2), (x, y) -- width first -- as a fraction of the padded
            level: (0, 0) is the outer corner of its first cell. Outside the level, and where a
            location is not finite, zero is read. Keep them float32 when `value` is 16-bit.
        attention_weights: (N, Q, M, L, P), summing to one over (L, P).

    Returns:
        (N, Q, M * D) in the dtype of `value`; differentiable once in all three float inputs.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together; the message gives both
            sides. Of `spatial_shapes` on a GPU the numbers are not waited for; there the kernel
            asserts.
    """
    check_tensors(
        value,
        spatial_shapes=spatial_shapes,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
    )
    check_value(value)
    if not torch.jit.is_tracing():  # the operator checks in every run of a traced program
        check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
        if spatial_shapes.device.type == "cpu" and not torch.compiler.is_compiling():
            check_positions(value, spatial_shapes.tolist())
    dtype = coordinate_dtype(value)
    return _ops.ms_deform_attn(
        value,
        spatial_shapes.to(torch.int64),
        sampling_locations.to(dtype),
        attention_weights.to(dtype),
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    points_per_level: Sequence[int] | None = None,
) -> Tensor:
    """
    :func:`ms_deform_attn` from what the projections of a query give: softmax and locations inside.

    Faster, and with 16-bit values more exact than from 16-bit locations, since a coordinate is the
    float32 sum of a float32 reference and an offset that is small.

    Args:
        value: (N, S, M, D), as in :func:`ms_deform_attn`.
        spatial_shapes: (H_l, W_l) of each level as ints.
        reference_points: (N, Q, L, 2), (x, y), or (N, Q, L, 4), (cx, cy, w, h), in [0, 1] of the
            padded level.
        sampling_offsets: (N, Q, M, K, 2), (x, y), level after level, K points in all: in cells
            of their level around a point, or in fractions of half a box, divided by the number
            of points of the level, around a box (Sec. A.4).
        attention_logits: (N, Q, M, K); the softmax is over K.
        points_per_level: how many of the K belong to each level; None shares them equally.

    Returns:
        (N, Q, M * D) in the dtype of `value`; differentiable once in all four tensors.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together; the message gives both
            sides.
    """
    check_tensors(
        value,
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
    )
    check_value(value)
    if points_per_level is None:
        if len(spatial_shapes) == 0 or sampling_offsets.shape[3] % len(spatial_shapes) != 0:
            raise ValueError(
                f"{sampling_offsets.shape[3]} points cannot be shared equally by "
                f"{len(spatial_shapes)} levels: say how with points_per_level"
            )
        points_per_level = [sampling_offsets.shape[3] // len(spatial_shapes)] * len(spatial_shapes)
    dtype = coordinate_dtype(value)
    if torch.jit.is_tracing():
        inputs = unfused(
            spatial_shapes, reference_points.to(dtype), sampling_offsets, attention_logits,
            [int(points) for points in points_per_level],
        )  # fmt: skip
        return _ops.ms_deform_attn(value, *inputs)
    check_positions(value, spatial_shapes)
    check_fused_shapes(
        value, spatial_shapes, reference_points, sampling_offsets, attention_logits,
        points_per_level,
    )  # fmt: skip
    if not sampling_offsets.dtype == attention_logits.dtype == value.dtype:
        sampling_offsets, attention_logits = sampling_offsets.to(dtype), attention_logits.to(dtype)
    return _ops.ms_deform_attn_fused(
        value,
        [size for pair in spatial_shapes for size in pair],
        list(points_per_level),
        reference_points.to(dtype),
        sampling_offsets,
        attention_logits,
    )


# Where no kernel is compiled for the device of the tensors.


def _impl(function):
    library.impl(function.__name__[1:], function, "CompositeExplicitAutograd")
    return function


def _by_sample(value, spatial_shapes, locations, attention):
    """What the PyTorch form takes: checked, with the samples of all levels on one axis."""
    check_plain(value, spatial_shapes, locations, attention)
    check_amounts(value, locations, locations.shape[3])
    check_memory(
        value=value,
        spatial_shapes=spatial_shapes,
        sampling_locations=locations,
        attention_weights=attention,
    )
    sizes = spatial_shapes.tolist()
    check_positions(value, sizes)
    level_points = [locations.shape[4]] * locations.shape[3]
    return value, sizes, level_points, locations.flatten(3, 4), attention.flatten(3, 4)


@_impl
def _ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights):
    return gather_forward(*_by_sample(value, spatial_shapes, sampling_locations, attention_weights))


@_impl
def _ms_deform_attn_backward(
    grad_output, value, spatial_shapes, sampling_locations, attention_weights,
    needs_value, needs_locations, needs_weights, deterministic,
):  # fmt: skip
    inputs = _by_sample(value, spatial_shapes, sampling_locations, attention_weights)
    check_grad_output(grad_output, value, sampling_locations)
    check_memory(grad_output=grad_output)
    grad_value, grad_locations, grad_weights = gather_backward(grad_output, *inputs)
    return (
        grad_value if needs_value else value.new_empty(0),
        (
            grad_locations.view(sampling_locations.shape)
            if needs_locations
            else sampling_locations.new_empty(0)
        ),
        (
            grad_weights.view(attention_weights.shape)
            if needs_weights
            else attention_weights.new_empty(0)
        ),
    )


def _pairs(level_shapes):
    return list(zip(level_shapes[::2], level_shapes[1::2]))


def _checked_pairs(value, level_shapes, level_points, references, offsets, logits):
    """(H_l, W_l), after the check of the whole call."""
    check_fused(value, level_shapes, level_points, references, offsets, logits)
    check_amounts(value, offsets, len(level_points))
    check_memory(
        value=value,
        reference_points=references,
        sampling_offsets=offsets,
        attention_logits=logits,
    )
    return _pairs(level_shapes)


@_impl
def _ms_deform_attn_fused(
    value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
):
    sizes = _checked_pairs(
        value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
    )
    locations = locations_from_offsets(reference_points, sampling_offsets, sizes, level_points)
    attention = attention_logits.to(locations.dtype).softmax(-1)
    return gather_forward(value, sizes, level_points, locations, attention)


@_impl
def _ms_deform_attn_fused_backward(
    grad_output, value, level_shapes, level_points, reference_points, sampling_offsets,
    attention_logits, needs_value, needs_references, needs_offsets, needs_logits, deterministic,
):  # fmt: skip
    sizes = _checked_pairs(
        value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
    )
    check_grad_output(grad_output, value, sampling_offsets)
    check_memory(grad_output=grad_output)
    step, base = step_and_base(reference_points, sizes, level_points)
    locations = base + sampling_offsets * step
    attention = attention_logits.to(locations.dtype).softmax(-1)
    grad_value, grad_locations, grad_attention = gather_backward(
        grad_output, value, sizes, level_points, locations, attention
    )
    mean = (attention * grad_attention).sum(-1, keepdim=True)
    grad_logits = (attention * (grad_attention - mean)).to(attention_logits.dtype)
    # What is not read has no gradient, even where an offset or a side of a box is not finite.
    unread = grad_locations == 0
    grad_offsets = (grad_locations * step).masked_fill(unread, 0).to(sampling_offsets.dtype)
    parts = [grad_locations]
    if reference_points.shape[3] == 4:
        points = torch.tensor(level_points, device=value.device)
        scale = (0.5 / points.to(locations.dtype)).repeat_interleave(points)[:, None]
        parts.append((grad_locations * sampling_offsets * scale).masked_fill(unread, 0))
    grad_references = torch.stack(
        [
            torch.cat([part.sum((2, 3)) for part in level_parts], dim=-1)
            for level_parts in zip(*(part.split(level_points, dim=3) for part in parts))
        ],
        dim=2,
    )
    return (
        grad_value if needs_value else value.new_empty(0),
        grad_references if needs_references else reference_points.new_empty(0),
        grad_offsets if needs_offsets else sampling_offsets.new_empty(0),
        grad_logits if needs_logits else attention_logits.new_empty(0),
    )


def _decompose_fused(
    value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
):
    sizes = _pairs(level_shapes)
    locations = locations_from_offsets(reference_points, sampling_offsets, sizes, level_points)
    attention = attention_logits.to(locations.dtype).softmax(-1)
    return grid_sample_forward(value, sizes, level_points, locations, attention)


#: For ``torch.export``: ``program.run_decompositions(GRID_SAMPLE_DECOMPOSITIONS)`` writes the fused
#: operator with `grid_sample`, for runtimes that know no other. (The sizes that the other entry
#: takes as a tensor are not known to an exporter.)
GRID_SAMPLE_DECOMPOSITIONS = {_ops.ms_deform_attn_fused.default: _decompose_fused}


# Gradients. What is saved is what came in: the softmax and the locations are computed again.


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.lists = [x for x in inputs if not isinstance(x, Tensor)]


def _where(needed, grads):
    return tuple(grad if need else None for need, grad in zip(needed, grads))


def _backward(ctx, grad_output):
    needs_value, _, *needs = ctx.needs_input_grad
    grads = _ops.ms_deform_attn_backward(
        grad_output.contiguous(), *ctx.saved_tensors, needs_value, *needs,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    grad_value, grad_locations, grad_weights = _where((needs_value, *needs), grads)
    return grad_value, None, grad_locations, grad_weights


def _fused_backward(ctx, grad_output):
    needs_value, _, _, *needs = ctx.needs_input_grad
    value, *rest = ctx.saved_tensors
    grads = _ops.ms_deform_attn_fused_backward(
        grad_output.contiguous(), value, *ctx.lists, *rest, needs_value, *needs,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    grad_value, *grads = _where((needs_value, *needs), grads)
    return grad_value, None, None, *grads


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "ms_deform_attn is differentiable once; for second derivatives use "
        "detectron2_ddetr.modeling.ms_deform_attn_grid_sample"
    )


for _name, _formula, _setup in (
    ("ms_deform_attn", _backward, _save_inputs),
    ("ms_deform_attn_fused", _fused_backward, _save_inputs),
    ("ms_deform_attn_backward", _no_second_derivative, None),
    ("ms_deform_attn_fused_backward", _no_second_derivative, None),
):
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", _formula, setup_context=_setup, lib=library
    )
