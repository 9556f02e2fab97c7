"""Small modules for the tests of `modeling`, and loops that say what they must compute."""

import itertools
import math

import torch

from detectron2_ddetr.modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    FeatureProjector,
    TwoStageDeformableTransformer,
)

#: Two levels, (H, W), and the valid (h, w) of each level for two images; nothing is square.
SHAPES = [(5, 7), (3, 4)]
VALID = [[(5, 7), (3, 4)], [(4, 5), (2, 3)]]
CHANNELS = [6, 10, 14]
NUM_CLASSES, NUM_QUERIES = 5, 9
HEADS = {
    "single_scale": {"num_levels": 1},
    "multi_scale": {},
    "refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


def randomise(module, seed=0, std=0.4):
    """Zero weights at initialisation hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module


def small_transformer(two_stage=False, d_model=32, n_levels=4, **kwargs):
    kwargs = {"dropout": 0.0, "num_encoder_layers": 2, "num_decoder_layers": 3, **kwargs}
    if two_stage:
        kwargs.setdefault("num_queries", NUM_QUERIES)
    cls = TwoStageDeformableTransformer if two_stage else DeformableTransformer
    sizes = {"n_heads": 4, "dim_feedforward": 24, "enc_n_points": 3, "dec_n_points": 2}
    return cls(d_model=d_model, n_levels=n_levels, **{**sizes, **kwargs})


def small_head(
    two_stage=False, with_box_refine=False, num_levels=4, d_model=32, transformer=None,
    parts=None, **kwargs
):  # fmt: skip
    """`parts` are further arguments of the head."""
    channels = CHANNELS if num_levels > 1 else CHANNELS[-1:]
    transformer = transformer or small_transformer(two_stage, d_model, num_levels, **kwargs)
    return DeformableDETRHead(
        input_proj=FeatureProjector(channels, d_model, num_levels),
        transformer=transformer,
        num_classes=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        with_box_refine=with_box_refine,
        **(parts or {}),
    )


def small_features(num_levels=4, sizes=((72, 104), (61, 83)), seed=0):
    """Backbone maps of strides 8, 16, 32 (32 alone for one level), and the padding mask."""
    generator = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    strides = (8, 16, 32) if num_levels > 1 else (32,)
    features = [
        torch.randn(len(sizes), c, -(-height // s), -(-width // s), generator=generator)
        for c, s in zip(CHANNELS[-len(strides) :], strides)
    ]
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        mask[i, :h, :w] = False
    return features, mask


def small_targets(counts=(3, 2), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(NUM_CLASSES, (count,), generator=generator),
            "boxes": (0.1 + 0.3 * torch.rand(count, 4, generator=generator)).to(dtype),
        }
        for count in counts
    ]


def level_masks(shapes=SHAPES, valid=VALID):
    """One (N, H_l, W_l) per level, True = padding."""
    masks = [torch.ones(len(valid), *shape, dtype=torch.bool) for shape in shapes]
    for i, image in enumerate(valid):
        for mask, (h, w) in zip(masks, image):
            mask[i, :h, :w] = False
    return masks


def cell_centres_loop(shapes=SHAPES, valid=VALID):
    """(N, S, 2), (x, y), float64."""
    return torch.tensor(
        [
            [
                [(j + 0.5) / w, (i + 0.5) / h]
                for (height, width), (h, w) in zip(shapes, image)
                for i in range(height)
                for j in range(width)
            ]
            for image in valid
        ],
        dtype=torch.float64,
    )


def to_levels_loop(reference, shapes=SHAPES, valid=VALID):
    """(N, Q, 2 or 4) -> (N, Q, L, 2 or 4)."""
    out = reference.new_zeros(*reference.shape[:2], len(shapes), reference.shape[2])
    for n, level, k in itertools.product(*map(range, (len(valid), *out.shape[2:]))):
        axis = 1 - k % 2  # x and w belong to the width, the second of (H, W)
        share = valid[n][level][axis] / shapes[level][axis]
        out[n, :, level, k] = reference[n, :, k] * share
    return out


def ms_deform_attn_loop(value, shapes, locations, attention):
    """Eq. (3), one cell at a time."""
    out = value.new_zeros(*attention.shape[:3], value.shape[3])
    for n, q, m, level, p in itertools.product(*map(range, attention.shape)):
        height, width = shapes[level]
        start = sum(h * w for h, w in shapes[:level])
        x, y = locations[n, q, m, level, p].tolist()
        x, y = x * width - 0.5, y * height - 0.5
        for i, j in itertools.product(range(height), range(width)):
            share = max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i))
            if share:
                weight = attention[n, q, m, level, p] * share
                out[n, q, m] += weight * value[n, start + i * width + j, m]
    return out.flatten(2)


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def layer_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * norm.weight + norm.bias


def deformable_attention_loop(attn, query, reference, src, shapes, padding_mask):
    heads, levels, points = attn.n_heads, attn.n_levels, attn.n_points
    value = linear(attn.value_proj, src)
    value[padding_mask] = 0
    offsets, logits = linear(attn.sampling_offsets, query), linear(attn.attention_weights, query)
    per_sample = (*query.shape[:2], heads, levels, points)
    locations, attention = query.new_zeros(*per_sample, 2), query.new_zeros(per_sample)
    for n, q, m, level, p in itertools.product(*map(range, per_sample)):
        k = (m * levels + level) * points + p
        of_head = logits[n, q, m * levels * points : (m + 1) * levels * points]
        attention[n, q, m, level, p] = logits[n, q, k].exp() / of_head.exp().sum()
        x, y, *size = reference[n, q, level].tolist()
        if size:
            per_x, per_y = size[0] / 2 / points, size[1] / 2 / points
        else:
            per_x, per_y = 1 / shapes[level][1], 1 / shapes[level][0]
        locations[n, q, m, level, p, 0] = x + offsets[n, q, 2 * k] * per_x
        locations[n, q, m, level, p, 1] = y + offsets[n, q, 2 * k + 1] * per_y
    value = value.view(*value.shape[:2], heads, -1)
    return linear(attn.output_proj, ms_deform_attn_loop(value, shapes, locations, attention))


def self_attention_loop(mha, query, key, value, blocked=None):
    width = query.shape[-1] // mha.num_heads
    q, k, v = (
        x @ w.T + b
        for x, w, b in zip(
            (query, key, value), mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3)
        )
    )
    heads = []
    for m in range(mha.num_heads):
        own = slice(m * width, (m + 1) * width)
        weight = (q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width)).exp()
        if blocked is not None:
            weight = weight * ~blocked
        heads.append(weight / weight.sum(-1, keepdim=True) @ v[..., own])
    return linear(mha.out_proj, torch.cat(heads, -1))


def feed_forward_loop(layer, x):
    return linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))


def encoder_layer_loop(layer, src, pos, reference, shapes, mask):
    attended = deformable_attention_loop(layer.self_attn, src + pos, reference, src, shapes, mask)
    src = layer_norm(layer.norm1, src + attended)
    return layer_norm(layer.norm2, src + feed_forward_loop(layer, src))


def decoder_layer_loop(layer, query, pos, reference, tokens, shapes, mask, blocked=None):
    attended = self_attention_loop(layer.self_attn, query + pos, query + pos, query, blocked)
    query = layer_norm(layer.norm2, query + attended)
    attended = deformable_attention_loop(
        layer.cross_attn, query + pos, reference, tokens, shapes, mask
    )
    query = layer_norm(layer.norm1, query + attended)
    return layer_norm(layer.norm3, query + feed_forward_loop(layer, query))
