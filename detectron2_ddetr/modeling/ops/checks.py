"""
What the operator refuses, and in which words, before anything is read.

The public functions check what they are given; the operators themselves, in their PyTorch form and
where only shapes are computed, check once more what reaches them (`check_plain`, `check_fused`),
since exported programs call them directly. csrc/checks.h does the same for the compiled kernels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: As in csrc/checks.h: positions are 32-bit numbers in the kernels, and no memory holds so many.
MAX_POSITIONS = 2**31 - 1 - 1024
MAX_NUMBERS = 2**48
MOST_LEVELS = 1024


def coordinate_dtype(value: Tensor) -> torch.dtype:
    """Of locations and sums: float64 for float64 values, otherwise float32."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def check_tensors(value: Tensor, **others: Tensor) -> None:
    """All are dense, hold real numbers and lie where value does; `spatial_shapes` may be on CPU."""
    for name, x in {"value": value, **others}.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, got {x}")
        if x.layout != torch.strided:
            raise ValueError(f"{name} must be dense, got layout {x.layout}")
        integers = name == "spatial_shapes"
        if x.device != value.device and not (integers and x.device.type == "cpu"):
            raise ValueError(f"{name} is on {x.device} but value is on {value.device}")
        if integers and (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
            raise ValueError(f"{name} must be integers, got {x.dtype}")
        if not integers and name != "value" and not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")


def check_value(value: Tensor) -> None:
    """(N, S, M, D) of 16, 32 or 64 bits."""
    if value.dim() != 4:
        raise ValueError(f"value must be (N, S, M, D), got shape {tuple(value.shape)}")
    if value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"value must be float of 16, 32 or 64 bits, got {value.dtype}")


def check_positions(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> None:
    """All levels together are as large as value."""
    for height, width in spatial_shapes:
        if height < 0 or width < 0:  # the product of two would be a size that fits
            raise ValueError(f"spatial_shapes must not be negative, got {(height, width)}")
    positions = sum(height * width for height, width in spatial_shapes)
    if positions != value.shape[1]:
        raise ValueError(
            f"spatial_shapes cover {positions} positions but value has {value.shape[1]}"
        )


def check_shapes(value: Tensor, shapes: Tensor, locations: Tensor, attention: Tensor) -> None:
    """Those of the entry that is given locations fit together."""
    if shapes.dim() != 2 or shapes.shape[1] != 2:
        raise ValueError(f"spatial_shapes must be (L, 2), got shape {tuple(shapes.shape)}")
    if locations.dim() != 6 or locations.shape[5] != 2:
        raise ValueError(
            f"sampling_locations must be (N, Q, M, L, P, 2), got shape {tuple(locations.shape)}"
        )
    if locations.shape[:5] != attention.shape:
        raise ValueError(
            f"attention_weights must be (N, Q, M, L, P) = {tuple(locations.shape[:5])} as in "
            f"sampling_locations, got shape {tuple(attention.shape)}"
        )
    expected = (value.shape[0], value.shape[2], shapes.shape[0])
    got = (locations.shape[0], locations.shape[2], locations.shape[3])
    if got != expected:
        raise ValueError(
            f"sampling_locations have (N, M, L) = {got}, while value and spatial_shapes "
            f"have {expected}"
        )


def check_fused_shapes(
    value: Tensor, shapes, references: Tensor, offsets: Tensor, logits: Tensor, level_points
) -> None:
    """Those of the entry that is given offsets fit together."""
    if references.dim() != 4 or references.shape[3] not in (2, 4):
        raise ValueError(
            "reference_points must be (N, Q, L, R) and end in 2 numbers (x, y) or 4 (cx, cy, w, "
            f"h), got shape {tuple(references.shape)}"
        )
    if len(level_points) != len(shapes) or any(n < 1 for n in level_points):
        raise ValueError(
            "points_per_level must give a number, at least 1, for each of "
            f"{len(shapes)} levels, got {list(level_points)}"
        )
    num_images, num_queries, num_levels = references.shape[:3]
    expected = (value.shape[0], num_queries, value.shape[2], sum(level_points))
    if logits.shape != expected or offsets.shape != (*expected, 2):
        raise ValueError(
            f"attention_logits must be (N, Q, M, K) = {expected} as in value, reference_points and "
            f"points_per_level, and sampling_offsets (N, Q, M, K, 2); got shapes "
            f"{tuple(logits.shape)} and {tuple(offsets.shape)}"
        )
    if (num_images, num_levels) != (value.shape[0], len(shapes)):
        raise ValueError(
            f"reference_points have (N, L) = {(num_images, num_levels)}, while value and "
            f"spatial_shapes have {(value.shape[0], len(shapes))}"
        )


def check_plain(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """What ``torch.ops.detectron2_ddetr.ms_deform_attn`` is given, but the numbers of the sizes."""
    points = {"sampling_locations": sampling_locations, "attention_weights": attention_weights}
    check_tensors(value, spatial_shapes=spatial_shapes, **points)
    check_value(value)
    check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    _check_dtypes(coordinate_dtype(value), **points)
    _check_dtypes(torch.int64, spatial_shapes=spatial_shapes)


def check_fused(
    value: Tensor, level_shapes, level_points, reference_points: Tensor, sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> None:  # fmt: skip
    """What ``torch.ops.detectron2_ddetr.ms_deform_attn_fused`` is given."""
    points = {"sampling_offsets": sampling_offsets, "attention_logits": attention_logits}
    check_tensors(value, reference_points=reference_points, **points)
    check_value(value)
    if len(level_shapes) != 2 * len(level_points):
        raise ValueError(
            f"level_shapes must be height and width of each of {len(level_points)} levels, got "
            f"{len(level_shapes)} numbers"
        )
    sizes = list(zip(level_shapes[::2], level_shapes[1::2]))
    check_positions(value, sizes)
    check_fused_shapes(
        value, sizes, reference_points, sampling_offsets, attention_logits, level_points
    )
    dtype = coordinate_dtype(value)
    _check_dtypes(dtype, reference_points=reference_points)
    _check_dtypes(value.dtype if sampling_offsets.dtype == value.dtype else dtype, **points)


def check_grad_output(grad_output: Tensor, value: Tensor, points: Tensor) -> None:
    """Like the output; queries are those of `points`, which have been checked."""
    check_tensors(value, grad_output=grad_output)
    _check_dtypes(value.dtype, grad_output=grad_output)
    expected = (value.shape[0], points.shape[1], value.shape[2] * value.shape[3])
    if grad_output.shape != expected:
        raise ValueError(
            f"grad_output must be (N, Q, M * D) = {expected}, got shape {tuple(grad_output.shape)}"
        )


def _check_dtypes(dtype: torch.dtype, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.dtype != dtype:
            raise ValueError(f"the dtype of {name} must be {dtype}, got {x.dtype}")


def check_amounts(value: Tensor, points: Tensor, num_levels: int) -> None:
    """
    No loop or result is too large, though a tensor without elements may have sides of any size.

    Symbols of a compiler are not compared with these numbers, for that would limit the program.
    """
    if num_levels > MOST_LEVELS:
        raise ValueError(f"at most {MOST_LEVELS} levels, got {num_levels}")
    if value.shape[1] > MAX_POSITIONS:
        raise ValueError(f"value has {value.shape[1]} positions, more than {MAX_POSITIONS}")
    output = (*points.shape[:3], value.shape[3])
    for name, shape in (("value", value.shape), ("samples", points.shape), ("output", output)):
        product = 1
        for size in shape:
            product *= max(size, 1)
        if product > MAX_NUMBERS:
            raise ValueError(f"{name} of sizes {tuple(shape)} is too large")


def check_memory(**tensors: Tensor) -> None:
    """Elements lie in the storage: it can be freed, or made smaller, under its tensors."""
    for name, x in tensors.items():
        if x.device.type != "cpu" or x.numel() == 0:
            continue
        last = x.storage_offset() + sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
        size = x.untyped_storage().nbytes()
        if (last + 1) * x.element_size() > size:
            raise ValueError(f"the memory of {name} was freed: its storage has {size} bytes")
