"""
The operator and others like it. Drop-in: (value, levels, locations, attention), as
`ms_deform_attn`. Fused: (value, levels, references, offsets, logits), as `ms_deform_attn_fused`.
"""

import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from operator_problems import POINTS, Levels  # tools/operator_problems.py
from torch import Tensor
from torch.autograd.function import once_differentiable

from detectron2_ddetr.modeling.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from detectron2_ddetr.modeling.ops.ms_deform_attn_pytorch import gather_backward, gather_forward


def our_drop_in(value: Tensor, levels: Levels, *rest: Tensor) -> Tensor:
    return ms_deform_attn(value, levels.shapes, *rest)


def our_fused(value: Tensor, levels: Levels, *rest: Tensor) -> Tensor:
    return ms_deform_attn_fused(value, levels.sizes, *rest)


def grid_sample(value: Tensor, levels: Levels, locations: Tensor, attention: Tensor) -> Tensor:
    """As `ms_deform_attn_core_pytorch` of the official code, step for step."""
    num_images, _, num_heads, channels = value.shape
    num_queries = locations.shape[1]
    maps = value.split([height * width for height, width in levels.sizes], dim=1)
    grids = 2 * locations - 1
    sampled = []
    for level, size in enumerate(levels.sizes):
        level_map = maps[level].flatten(2).transpose(1, 2)
        level_map = level_map.reshape(num_images * num_heads, channels, *size)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (N * M, Q, P, 2)
        sampled.append(F.grid_sample(level_map, grid, align_corners=False))
    attention = attention.transpose(1, 2).reshape(num_images * num_heads, 1, num_queries, -1)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * attention).sum(-1)
    return output.view(num_images, num_heads * channels, num_queries).transpose(1, 2).contiguous()


class _Fallback(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, levels, locations, attention):
        ctx.save_for_backward(value, locations, attention)
        ctx.levels = levels.sizes, [locations.shape[4]] * locations.shape[3]
        return gather_forward(value, *ctx.levels, locations.flatten(3, 4), attention.flatten(3, 4))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        value, locations, attention = ctx.saved_tensors
        grad_value, grad_locations, grad_attention = gather_backward(
            grad_output, value, *ctx.levels, locations.flatten(3, 4), attention.flatten(3, 4)
        )
        return (
            grad_value,
            None,
            grad_locations.view_as(locations),
            grad_attention.view_as(attention),
        )


class _OfficialCuda(torch.autograd.Function):
    """As `MSDeformAttnFunction` of the official code, whose `im2col_step` is 64."""

    @staticmethod
    def forward(ctx, value, levels, locations, attention):
        import MultiScaleDeformableAttention as official

        tensors = (value, levels.shapes, levels.starts, locations, attention)
        ctx.save_for_backward(*tensors)
        return official.ms_deform_attn_forward(*tensors, 64)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        import MultiScaleDeformableAttention as official

        grads = official.ms_deform_attn_backward(*ctx.saved_tensors, grad_output.contiguous(), 64)
        return grads[0], None, *grads[1:]


def torch_ms_deform_attn(value: Tensor, levels: Levels, locations: Tensor, attention: Tensor):
    from torch_ms_deform_attn import ms_deform_attn as other

    return other(value, levels.shapes, levels.starts, locations, attention)


OTHERS = {
    "grid_sample": grid_sample,
    "fallback": _Fallback.apply,
    "torch-ms-deform-attn": torch_ms_deform_attn,
    "official-cuda": _OfficialCuda.apply,
}


def why_not(other: str, device: torch.device) -> str | None:
    """Why another implementation cannot take part, from what is installed; None: it can."""
    if other == "official-cuda":
        if device.type != "cuda":
            return "has no kernels for a CPU"
        if importlib.util.find_spec("MultiScaleDeformableAttention") is None:
            return "MultiScaleDeformableAttention is not installed"
    if other == "torch-ms-deform-attn":
        if importlib.util.find_spec("torch_ms_deform_attn") is None:
            return "is not installed"
        compiled = importlib.import_module("torch_ms_deform_attn._C")
        if device.type == "cuda" and not compiled.with_cuda:
            return "was built without CUDA"
    return None


def after_elementwise(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The fused entry out of an operator that is not: what the official module does before it."""

    def run(value, levels, references, offsets, logits):
        per_level = (len(levels.sizes), POINTS)
        attention = logits.softmax(-1).unflatten(-1, per_level)
        size = levels.shapes.flip(-1)[:, None]  # (L, 1, 2), (W, H)
        locations = references[:, :, None, :, None] + offsets.unflatten(3, per_level) / size
        return core(value, levels, locations, attention)

    return run
