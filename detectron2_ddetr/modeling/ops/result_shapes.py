"""Shapes of what the operators give, for compilers and exporters, which compute nothing."""

import torch
from torch import Tensor

from .checks import check_fused, check_grad_output, check_plain
from .schemas import NAMESPACE, library


def _fake(function):
    name = f"{NAMESPACE}::{function.__name__[6:]}"
    torch.library.register_fake(name, function, lib=library)
    return function


def _contiguous(like: Tensor, needed: bool) -> Tensor:
    return like.new_empty(like.shape if needed else 0)


@_fake
def _fake_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights):
    check_plain(value, spatial_shapes, sampling_locations, attention_weights)
    num_images, num_queries, num_heads = attention_weights.shape[:3]
    return value.new_empty(num_images, num_queries, num_heads * value.shape[3])


@_fake
def _fake_ms_deform_attn_backward(
    grad_output, value, spatial_shapes, sampling_locations, attention_weights,
    needs_value, needs_locations, needs_weights, deterministic,
):  # fmt: skip
    check_plain(value, spatial_shapes, sampling_locations, attention_weights)
    check_grad_output(grad_output, value, sampling_locations)
    return (
        _contiguous(value, needs_value),
        _contiguous(sampling_locations, needs_locations),
        _contiguous(attention_weights, needs_weights),
    )


@_fake
def _fake_ms_deform_attn_fused(
    value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
):
    check_fused(
        value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
    )
    num_images, num_queries, num_heads = attention_logits.shape[:3]
    return value.new_empty(num_images, num_queries, num_heads * value.shape[3])


@_fake
def _fake_ms_deform_attn_fused_backward(
    grad_output, value, level_shapes, level_points, reference_points, sampling_offsets,
    attention_logits, needs_value, needs_references, needs_offsets, needs_logits, deterministic,
):  # fmt: skip
    check_fused(
        value, level_shapes, level_points, reference_points, sampling_offsets, attention_logits
    )
    check_grad_output(grad_output, value, sampling_offsets)
    return (
        _contiguous(value, needs_value),
        _contiguous(reference_points, needs_references),
        _contiguous(sampling_offsets, needs_offsets),
        _contiguous(attention_logits, needs_logits),
    )
