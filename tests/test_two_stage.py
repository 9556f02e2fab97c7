"""Proposals, and the queries that are made of the best of them."""

import math

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import Memory, TokenHeads, box_position_encoding
from detectron2_ddetr.modeling.two_stage import proposals

from .modeling_cases import (
    SHAPES,
    VALID,
    cell_centres_loop,
    layer_norm,
    level_masks,
    linear,
    randomise,
    small_features,
    small_head,
    small_targets,
    small_transformer,
)
from .test_memory import OFFICIAL

C, K = 16, 3


def make_memory(shapes=SHAPES, valid=VALID, channels=C):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(len(valid), channels, *shape, generator=generator) for shape in shapes]
    memory = Memory.from_maps(maps, level_masks(shapes, valid))
    memory.tokens.requires_grad_()
    return memory


def make_transformer(num_queries=8, n_levels=2):
    return randomise(small_transformer(True, C, n_levels, n_heads=2, num_queries=num_queries))


def token_heads(seed=0):
    generator = torch.Generator().manual_seed(seed)
    classify = torch.randn(C, K, generator=generator)
    box = torch.randn(C, 4, generator=generator, requires_grad=True)
    return TokenHeads(lambda tokens: tokens @ classify, lambda tokens: tokens @ box)


def test_official_numbers():
    """Parity G46, G47: the proposals of 3 x 5 valid cells of 4 x 6, and which are not usable."""
    logits, usable = proposals(make_memory(*OFFICIAL))
    boxes = logits.sigmoid()
    for token, expected in [
        (0, (0.1, 0.166667, 0.05, 0.05)),
        (7, (0.3, 0.5, 0.05, 0.05)),
        (24, (0.166667, 0.25, 0.1, 0.1)),
    ]:
        assert_close(boxes[0, token], torch.tensor(expected), rtol=0, atol=1e-6)
    unusable = [5, 11, *range(17, 24)]
    assert (~usable[0]).nonzero().flatten().tolist() == unusable
    assert torch.equal(logits[0] == math.inf, ~usable[0, :, None].expand(-1, 4))


def test_loop():
    """Parity G46, G47: centres of cells, 0.05 * 2^l wide and high, +inf in padding."""
    logits, usable = proposals(make_memory())
    centres = cell_centres_loop()
    for n in range(2):
        for s in range(47):
            level = 0 if s < 35 else 1
            row, column = divmod(s - 35 * level, SHAPES[level][1])
            height, width = VALID[n][level]
            assert usable[n, s] == (row < height and column < width)
            if usable[n, s]:
                box = [*centres[n, s].tolist(), 0.05 * 2**level, 0.05 * 2**level]
                expected = torch.tensor([math.log(p / (1 - p)) for p in box])
                assert_close(logits[n, s], expected, rtol=0, atol=1e-5)
            else:
                assert (logits[n, s] == math.inf).all()


def test_limits():
    """Parity G47: the open interval (0.01, 0.99), exactly at 50 cells; level 5 is too large."""
    shapes = [(3, 50), (50, 3), (3, 49), (1, 2), (2, 1), (2, 3)]
    _, usable = proposals(make_memory(shapes, [shapes]))
    levels = usable[0].split([h * w for h, w in shapes])
    wide, high, narrower, fourth, fifth, sixth = (
        level.view(shape) for level, shape in zip(levels, shapes)
    )
    assert wide.sum() == 3 * 48 and not wide[:, [0, 49]].any()
    assert high.sum() == 3 * 48 and not high[[0, 49]].any()
    assert narrower.all() and fourth.all() and fifth.all()  # 0.8 at level 4
    assert not sixth.any()  # 1.6


def test_limits_in_padding():
    """Parity G47: relative to the exact count of valid cells; 50 / 97 * 97 is not 50 in float32."""
    shapes, valid = [(3, 97), (97, 3)], [[(2, 50), (50, 2)]]
    _, usable = proposals(make_memory(shapes, valid))
    wide, high = (level.view(shape) for level, shape in zip(usable[0].split(291), shapes))
    assert wide.sum() == high.sum() == 2 * 48
    assert wide[:2, 1:49].all() and high[1:49, :2].all()


def test_queries_loop():
    """Parity G48-G50, G52: each step in the order of the official code."""
    transformer, memory, heads = make_transformer(), make_memory(), token_heads()
    queries = transformer.initial_queries(memory, None, heads)
    logits, usable = proposals(memory)
    tokens = memory.tokens * usable[..., None]
    tokens = layer_norm(transformer.enc_output_norm, linear(transformer.enc_output, tokens))
    classes, deltas = heads.classify(tokens), heads.refine(tokens)
    assert_close(queries.proposals["pred_logits"], classes, rtol=1e-4, atol=1e-4)
    for n in range(2):
        order = sorted(range(47), key=lambda s: -classes[n, s, 0].item())[:8]
        for q, s in enumerate(order):
            box = (deltas[n, s] + logits[n, s]).sigmoid()
            assert_close(queries.proposals["pred_boxes"][n, s], box, rtol=0, atol=1e-4)
            assert_close(queries.reference_points[n, q], box, rtol=0, atol=1e-4)
    encoded = box_position_encoding(queries.reference_points, C // 2)
    encoded = layer_norm(transformer.pos_trans_norm, linear(transformer.pos_trans, encoded))
    assert_close(queries.query_pos, encoded[..., :C], rtol=0, atol=1e-4)
    assert_close(queries.content, encoded[..., C:], rtol=0, atol=1e-4)
    assert (queries.proposals["pred_boxes"][~usable] == 1).all()


def test_channel_zero_ranks():
    """Parity G50: objectness is channel 0, not the best class; descending."""
    transformer, memory = make_transformer(5), make_memory()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 47, K, generator=generator)
    deltas = torch.randn(2, 47, 4, generator=generator)
    logits[..., 2] += 5
    heads = TokenHeads(lambda tokens: logits, lambda tokens: deltas)
    queries = transformer.initial_queries(memory, None, heads)
    top = logits[..., 0].sort(descending=True).indices[:, :5]
    boxes = queries.proposals["pred_boxes"]
    for n in range(2):
        assert_close(queries.reference_points[n], boxes[n, top[n]])


def test_boxes_of_the_chosen_alone():
    """The same queries, of as many rows as there are."""
    transformer, memory, heads = make_transformer(), make_memory(), token_heads()
    expected = transformer.initial_queries(memory, None, heads)
    rows = []
    transformer.all_tokens_propose = False
    counted = TokenHeads(
        heads.classify, lambda tokens: rows.append(tokens.shape[1]) or heads.refine(tokens)
    )
    queries = transformer.initial_queries(memory, None, counted)
    assert rows == [8]
    assert torch.equal(queries.selected, expected.selected)
    images = torch.arange(2)[:, None]
    for key, found in queries.proposals.items():
        assert_close(found, expected.proposals[key][images, expected.selected])
    assert_close(queries.reference_points, expected.reference_points)
    assert_close(queries.content, expected.content)
    assert not queries.reference_points.requires_grad
    queries.proposals["pred_boxes"].sum().backward()
    chosen = torch.zeros(2, 47, dtype=torch.bool).scatter(1, queries.selected, True)
    assert not memory.tokens.grad[~chosen].any() and memory.tokens.grad.any()


def test_gradients():
    """Parity G49, G53: no NaN, none through the chosen boxes, none from unusable tokens."""
    transformer, memory = make_transformer(), make_memory()
    queries = transformer.initial_queries(memory, None, token_heads())
    assert not queries.reference_points.requires_grad
    (queries.query_pos.square() + queries.content).sum().backward(retain_graph=True)
    assert memory.tokens.grad is None and transformer.enc_output.weight.grad is None
    assert transformer.pos_trans.weight.grad.any()
    (queries.proposals["pred_boxes"].sum() + queries.proposals["pred_logits"].sum()).backward()
    usable = proposals(memory)[1]
    assert memory.tokens.grad.isfinite().all()
    assert memory.tokens.grad[usable].any(-1).all() and not memory.tokens.grad[~usable].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in transformer.parameters())


@pytest.mark.parametrize("num_queries", [46, 47, 300])
def test_fewer_tokens_than_queries(num_queries):
    """Parity G54: every token becomes a query."""
    queries = make_transformer(num_queries).initial_queries(make_memory(), None, token_heads())
    count = min(num_queries, 47)
    assert queries.reference_points.shape == (2, count, 4)
    assert queries.content.shape == queries.query_pos.shape == (2, count, C)


def test_tiny_image_end_to_end():
    """Parity G54: an image smaller than the coarsest stride trains, with more targets than Q."""
    from detectron2_ddetr.modeling import HungarianMatcher, SetCriterion

    head = randomise(small_head(True, True, num_queries=30), std=0.2)
    outputs = head(*small_features(sizes=((13, 20),)))
    assert outputs["pred_boxes"].shape == (1, 6 + 2 + 1 + 1, 4)
    losses = SetCriterion(HungarianMatcher())(outputs, small_targets((12,)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_float32_under_autocast():
    """Parity B12, I72: references and proposals stay float32 when the layers are 16-bit."""
    transformer, memory = make_transformer(), make_memory()
    with torch.autocast("cpu", torch.bfloat16):
        queries = transformer.initial_queries(memory, None, token_heads())
    assert queries.reference_points.dtype == torch.float32
    assert queries.proposals["pred_boxes"].dtype == torch.float32
    assert queries.proposals["pred_boxes"].isfinite().all()
