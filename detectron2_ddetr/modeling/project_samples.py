"""
Deformable attention in the other order: heads sample the tokens and project what they have summed.

So nothing is computed for tokens that nobody reads: the smaller side of the minimum in the paper's
complexity of a layer (Sec. 4.1), where queries are few. The official code projects all tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .ops.ms_deform_attn import ms_deform_attn_fused

#: Multiply-adds of a projection that cost as much as to read one channel of a sample, in 32 bits
#: and more and in 16, where products are faster: see BENCHMARKS.md.
_PRODUCTS_PER_READ, _PRODUCTS_OF_16_BITS_PER_READ = 16, 64


def is_less_work(num_samples: int, src: Tensor, weight: Tensor) -> bool:
    """
    Whether to sample first costs less on a CPU.

    Args:
        num_samples: of all queries and heads of an image.
        src: (N, S, C), the tokens.
        weight: (C', C), of the projection.
    """
    tokens, channels = src.shape[1:]
    short = torch.is_autocast_enabled("cpu") or weight.element_size() == 2
    products = _PRODUCTS_OF_16_BITS_PER_READ if short else _PRODUCTS_PER_READ
    return num_samples * products <= tokens * channels


def project_samples(
    src: Tensor,
    padding_mask: Tensor | None,
    projection: nn.Linear,
    spatial_shapes: Sequence[tuple[int, int]],
    level_reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """
    What :func:`ms_deform_attn_fused` makes of projected tokens, but for rounding.

    Args:
        src: (N, S, C), the tokens.
        padding_mask: (N, S), True = padding, which is read as zero; None for none.
        projection: C -> M * D, with a bias.
        spatial_shapes: (H_l, W_l) of each level.
        level_reference_points: (N, Q, L, 2 or 4), as of that function.
        sampling_offsets: (N, Q, M, K, 2).
        attention_logits: (N, Q, M, K).
        points_per_level: how many of the K belong to each level.

    Returns:
        (N, Q, M * D).
    """
    images, queries, heads, samples = attention_logits.shape
    valid = src.new_ones(images, src.shape[1])
    if padding_mask is not None:
        src = src.masked_fill(padding_mask[..., None], 0.0)
        valid = valid.masked_fill_(padding_mask, 0.0)
    # A head of a query is a query of one head, and all of them read the same tokens.
    level_reference_points = level_reference_points[:, :, None].expand(-1, -1, heads, -1, -1)
    sums, read = (
        ms_deform_attn_fused(
            tokens[:, :, None],
            spatial_shapes,
            level_reference_points.flatten(1, 2),
            sampling_offsets.reshape(images, queries * heads, 1, samples, 2),
            attention_logits.reshape(images, queries * heads, 1, samples),
            points_per_level,
        ).unflatten(1, (queries, heads))
        for tokens in (src, valid[..., None])
    )
    # (M, N * Q, C) by (M, C, D).
    weight = projection.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    projected = torch.bmm(sums.flatten(0, 1).transpose(0, 1), weight).transpose(0, 1)
    # Of the bias, too, nothing is read outside.
    bias = read * projection.bias.unflatten(0, (heads, -1))
    return (projected.unflatten(0, (images, queries)) + bias).flatten(2)
