"""Encoder and decoder against loops over layers; invariance to padding; queries."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    DeformableTransformerDecoderLayer,
    DeformableTransformerEncoderLayer,
    Memory,
    MSDeformAttn,
    PositionEmbeddingSine,
    QuerySet,
    TokenHeads,
)
from detectron2_ddetr.modeling.attention import MultiheadAttention
from detectron2_ddetr.modeling.box_ops import shift_box

from .modeling_cases import (
    SHAPES,
    VALID,
    cell_centres_loop,
    decoder_layer_loop,
    encoder_layer_loop,
    level_masks,
    linear,
    randomise,
    small_transformer,
    to_levels_loop,
)

C, S, Q = 16, 47, 6
MASK = torch.cat([mask.flatten(1) for mask in level_masks()], 1)


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_memory(seed=0):
    maps = [rand(2, C, *shape, seed=seed + i) for i, shape in enumerate(SHAPES)]
    return Memory.from_maps(maps, level_masks())


def make_transformer(**kwargs):
    sizes = {"d_model": C, "n_levels": 2, "n_heads": 2, **kwargs}
    return randomise(small_transformer(**sizes).double())


def decoder_layer(dropout=0.0):
    layer = DeformableTransformerDecoderLayer(
        MSDeformAttn(C, n_levels=2, n_heads=2, n_points=3),
        MultiheadAttention(C, n_heads=2, dropout=dropout),
        C,
        dim_feedforward=20,
        dropout=dropout,
    )
    return randomise(layer.double())


def encoder_layer(dropout=0.0):
    layer = DeformableTransformerEncoderLayer(
        MSDeformAttn(C, n_levels=2, n_heads=2, n_points=3), C, dim_feedforward=20, dropout=dropout
    )
    return randomise(layer.double())


def encoder_inputs():
    """src, pos, level_reference_points, spatial_shapes, mask."""
    reference = rand(2, S, 2, 2, seed=3).sigmoid()
    return rand(2, S, C, seed=1), rand(2, S, C, seed=2), reference, torch.tensor(SHAPES), MASK


def decoder_inputs(numbers=4):
    """query, pos, level_reference_points, memory."""
    reference = rand(2, Q, 2, numbers, seed=3).sigmoid()
    return rand(2, Q, C, seed=1), rand(2, Q, C, seed=2), reference, make_memory()


def test_encoder_layer_loop():
    """Parity E32: position in the query only, norm1 after attention, norm2 after the rest."""
    layer = encoder_layer()
    src, pos, reference, _, mask = inputs = encoder_inputs()
    expected = encoder_layer_loop(layer, src, pos, reference, SHAPES, mask)
    assert_close(layer(*inputs), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("numbers", [2, 4])
def test_decoder_layer_loop(numbers):
    """Parity E34: norm2 after self-attention, norm1 after cross-attention, then norm3."""
    layer = decoder_layer()
    query, pos, reference, memory = inputs = decoder_inputs(numbers)
    expected = decoder_layer_loop(layer, query, pos, reference, memory.tokens, SHAPES, MASK)
    assert_close(layer(*inputs), expected, rtol=0, atol=1e-9)


def test_decoder_layer_mask_loop():
    """True in the attention mask blocks a column for a row."""
    layer = decoder_layer()
    query, pos, reference, memory = inputs = decoder_inputs()
    blocked = torch.ones(Q, Q, dtype=torch.bool).triu(1)
    expected = decoder_layer_loop(
        layer, query, pos, reference, memory.tokens, SHAPES, MASK, blocked
    )
    assert_close(layer(*inputs, blocked), expected, rtol=0, atol=1e-9)


def test_encoder_loop():
    """Parity E33, E37, B13, C15: level embeddings, the same references, no final norm."""
    transformer = make_transformer()
    maps = [rand(2, C, *shape, seed=i) for i, shape in enumerate(SHAPES)]
    pos_embeds = [rand(2, C, *shape, seed=5 + i) for i, shape in enumerate(SHAPES)]
    memory = transformer.encode(maps, level_masks(), pos_embeds)

    def cells(levels):
        return torch.stack([x[:, :, i, j] for x, (h, w) in zip(levels, SHAPES)
                            for i in range(h) for j in range(w)], 1)  # fmt: skip

    with_level = [x + transformer.level_embed[i][:, None, None] for i, x in enumerate(pos_embeds)]
    reference = to_levels_loop(cell_centres_loop())
    tokens = cells(maps)
    for layer in transformer.encoder.layers:
        tokens = encoder_layer_loop(layer, tokens, cells(with_level), reference, SHAPES, MASK)
    assert_close(memory.tokens, tokens, rtol=0, atol=1e-5)
    assert torch.equal(memory.padding_mask, MASK)
    assert not [m for m in transformer.encoder.children() if m is not transformer.encoder.layers]
    decoder = transformer.decoder
    assert not [m for m in decoder.children() if m is not decoder.layers and [*m.parameters()]]


@pytest.mark.parametrize("numbers", [2, 4])
def test_decoder_loop(numbers):
    """Parity C16, E35, E37: each layer reads the reference that the one before handed on."""
    transformer, memory = make_transformer(), make_memory()
    reference = rand(2, Q, numbers, seed=8).sigmoid()
    queries = QuerySet(rand(2, Q, C, seed=6), rand(2, Q, C, seed=7), reference)

    def update(i, query, output, reference):
        assert output is query
        boxes = shift_box(0.3 * (i + 1) * query[..., :4], reference)
        return boxes, boxes

    hs, boxes, references = transformer.decoder(queries, memory, update)
    assert len(hs) == len(boxes) == len(references) == 3
    query = queries.content
    for i, layer in enumerate(transformer.decoder.layers):
        assert_close(references[i], reference)
        on_levels = to_levels_loop(reference)
        query = decoder_layer_loop(
            layer, query, queries.query_pos, on_levels, memory.tokens, SHAPES, MASK
        )
        assert_close(hs[i], query, rtol=0, atol=1e-5)
        reference = shift_box(0.3 * (i + 1) * hs[i][..., :4], reference)
        assert_close(boxes[i], reference)


def test_groups_do_not_see_each_other():
    """A block of the attention mask, shared or per image and head, hides other queries."""
    transformer, memory = make_transformer(), make_memory()
    content, pos, reference = rand(2, Q, C), rand(2, Q, C, seed=1), rand(2, Q, 4).sigmoid()
    blocked = torch.zeros(Q, Q, dtype=torch.bool)
    blocked[:4, 4:] = True  # the first four do not see the last two

    def last(content, mask):
        queries = QuerySet(content, pos, reference, mask)
        return transformer.decoder(queries, memory, lambda i, q, o, r: (r, r))[0][-1]

    changed = content.clone()
    changed[:, 4:] += 1
    before, after = last(content, blocked), last(changed, blocked)
    assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3
    assert (last(content, None)[:, :4] - last(changed, None)[:, :4]).abs().max() > 1e-3
    one_image = torch.stack([blocked, blocked, ~blocked & False, ~blocked & False])  # N * M
    before, after = last(content, one_image), last(changed, one_image)
    assert_close(before[0, :4], after[0, :4])
    assert (before[1, :4] - after[1, :4]).abs().max() > 1e-3


def test_queries_are_alike():
    """Permuting the queries permutes the results; images in a batch do not see each other."""
    transformer, memory = make_transformer(), make_memory()
    content, pos, reference = rand(2, Q, C), rand(2, Q, C, seed=1), rand(2, Q, 4).sigmoid()
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def last(*queries):
        return transformer.decoder(QuerySet(*queries), memory, lambda i, q, o, r: (r, r))[0][-1]

    expected = last(content, pos, reference)
    permuted = last(*(x[:, order] for x in (content, pos, reference)))
    assert_close(permuted, expected[:, order])
    other = content.clone()
    other[1] += 1
    assert_close(last(other, pos, reference)[0], expected[0])


@pytest.mark.parametrize("two_stage", [False, True])
def test_padding_changes_nothing(two_stage):
    """PEERS 7.1: maps alone equal the same maps surrounded by masked garbage, in evaluation."""
    transformer = randomise(small_transformer(two_stage, C, 2, n_heads=2), std=0.3).eval()
    if two_stage:  # padding then scores 0, less than any cell
        for layer in (transformer.enc_output, transformer.enc_output_norm):
            nn.init.zeros_(layer.bias)
    position_embedding = PositionEmbeddingSine(C // 2)
    query_embed = None if two_stage else rand(Q, 2 * C).float()
    bboxes = 0.3 * rand(C, 4).float()

    heads = TokenHeads(lambda x: x.abs().sum(-1, keepdim=True), lambda x: x @ bboxes)

    def update(i, query, output, reference):
        boxes = shift_box(query @ bboxes, reference)
        return boxes, boxes

    def run(maps, masks):
        memory = transformer.encode(maps, masks, [position_embedding(m) for m in masks])
        queries = transformer.initial_queries(memory, query_embed, heads)
        return memory, *transformer.decoder(queries, memory, update)[:2]

    valid = VALID[1]
    maps = [rand(1, C, h, w, seed=i).float() for i, (h, w) in enumerate(valid)]
    alone = run(maps, [torch.zeros(1, h, w, dtype=torch.bool) for h, w in valid])
    padded_maps = [50 * rand(2, C, *shape, seed=9).float() for shape in SHAPES]
    for padded, m, (h, w) in zip(padded_maps, maps, valid):
        padded[1:, :, :h, :w] = m
    padded = run(padded_maps, level_masks())
    for level, expected, (h, w) in zip(padded[0].unflatten(), alone[0].unflatten(), valid):
        assert_close(level[1:, :, :h, :w], expected, rtol=0, atol=1e-5)
    for a, b in zip(padded[1] + padded[2], alone[1] + alone[2]):
        assert_close(a[1:], b, rtol=0, atol=1e-5)
    no_mask = run(padded_maps, level_masks(valid=[SHAPES, SHAPES]))
    assert (no_mask[2][-1][1:] - alone[2][-1]).abs().max() > 2e-3


def test_learned_queries():
    """Parity E38, F45: position, then content; the reference follows the position, not detached."""
    transformer, memory = make_transformer(), make_memory()
    query_embed = rand(Q, 2 * C).requires_grad_()
    queries = transformer.initial_queries(memory, query_embed, None)
    for image in range(2):
        assert_close(queries.query_pos[image], query_embed[:, :C])
        assert_close(queries.content[image], query_embed[:, C:])
        logits = linear(transformer.reference_points, query_embed[:, :C])
        expected = 1 / (1 + (-logits).exp())
        assert_close(queries.reference_points[image].double(), expected, rtol=0, atol=1e-6)
    assert queries.attn_mask is None and queries.proposals is None
    queries.reference_points.sum().backward()
    assert query_embed.grad[:, :C].any() and not query_embed.grad[:, C:].any()
    assert transformer.reference_points.weight.grad.any()


@pytest.mark.parametrize("two_stage", [False, True])
def test_initialisation(two_stage):
    """Parity D28: Xavier matrices, the attention modules keep their own, N(0, 1) levels."""
    transformer = small_transformer(two_stage, 128, num_decoder_layers=2)
    matrices = {"linear1", "linear2", "out_proj", "reference_points", "enc_output", "pos_trans"}
    for name, parameter in transformer.named_parameters():
        owner, kind = name.split(".")[-2:] if "." in name else ("", name)
        if owner in matrices and kind == "weight" or kind == "in_proj_weight":
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.9 * bound < parameter.abs().max() <= bound, name
    for module in transformer.modules():
        if isinstance(module, MSDeformAttn):
            assert not module.sampling_offsets.weight.any()
            assert not module.attention_weights.weight.any()
            assert module.sampling_offsets.bias[0] == 1 and module.sampling_offsets.bias[1] == 0
    assert transformer.level_embed.shape == (4, 128)
    assert 0.9 < transformer.level_embed.std() < 1.1
    if not two_stage:
        assert not transformer.reference_points.bias.any()


def test_wrong_number_of_levels():
    """The message gives both numbers."""
    maps = [rand(2, C, *shape) for shape in SHAPES]
    with pytest.raises(ValueError, match="got 2 levels.*4"):
        make_transformer(n_levels=4).encode(maps, level_masks(), maps)
