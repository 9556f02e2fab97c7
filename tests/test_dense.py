"""DETR's transformer and head: layers as written out, padding without influence, attention maps."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2_ddetr.modeling import DenseTransformer, DETRHead, PlainProjector, capture
from detectron2_ddetr.modeling.decoder import QuerySet

from .modeling_cases import (
    CHANNELS,
    NUM_CLASSES,
    NUM_QUERIES,
    feed_forward_loop,
    layer_norm,
    randomise,
    self_attention_loop,
)

SIZES = {"d_model": 32, "n_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 3,
         "dim_feedforward": 24, "dropout": 0.0}  # fmt: skip


def small_detr(**sizes):
    return DETRHead(
        input_proj=PlainProjector(CHANNELS[-1], 32),
        transformer=DenseTransformer(**{**SIZES, **sizes}),
        num_classes=NUM_CLASSES,
        num_queries=NUM_QUERIES,
    )


@pytest.fixture
def head():
    return randomise(small_detr(), std=0.3).double().eval()


def features(images=2, size=(6, 9), valid=((6, 9), (5, 6))):
    """One map, and the padding mask of its images at stride 32."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(images, CHANNELS[-1], *size, generator=generator, dtype=torch.float64)
    mask = torch.ones(images, 32 * size[0], 32 * size[1], dtype=torch.bool)
    for i, (h, w) in enumerate(valid[:images]):
        mask[i, : 32 * h, : 32 * w] = False
    return [maps], mask


def test_layers_are_what_they_are_defined_to_be(head):
    """Positions are added to queries and keys of every layer, not to values; norms come last."""
    layer, decoder = head.transformer.encoder.layers[0], head.transformer.decoder
    src, pos, query, query_pos = (
        torch.randn(2, n, 32, dtype=torch.float64) for n in (10, 10, NUM_QUERIES, NUM_QUERIES)
    )
    nothing = torch.zeros(2, 10, dtype=torch.bool)
    x = layer_norm(layer.norm1, src + self_attention_loop(layer.self_attn, *[src + pos] * 2, src))
    x = layer_norm(layer.norm2, x + feed_forward_loop(layer, x))
    assert_close(layer(src, pos, nothing), x)

    class Tokens:
        tokens, pos_embed, padding_mask = src, pos, nothing

    state = query
    for layer in decoder.layers:
        own = state + query_pos
        state = layer_norm(
            layer.norm1, state + self_attention_loop(layer.self_attn, own, own, state)
        )
        read = self_attention_loop(layer.multihead_attn, state + query_pos, src + pos, src)
        state = layer_norm(layer.norm2, state + read)
        state = layer_norm(layer.norm3, state + feed_forward_loop(layer, state))
    queries = QuerySet(query, query_pos, None)
    hs, boxes, references = decoder(queries, Tokens, lambda i, q, output, r: (output.sum(), r))
    assert_close(hs[-1], layer_norm(decoder.norm, state))
    assert boxes == [h.sum() for h in hs] and references == []


def test_queries_begin_with_a_position_alone(head):
    """And boxes are relative to nothing: one box head after the sigmoid, for all layers."""
    maps, mask = features()
    with capture(head) as captured:
        outputs = head(maps, mask)
    queries = head.transformer.initial_queries(captured.memory, head.query_embed.weight, None)
    assert not queries.content.any() and queries.reference_points is None
    assert torch.equal(queries.query_pos[1], head.query_embed.weight)
    assert outputs["pred_logits"].shape == (2, NUM_QUERIES, NUM_CLASSES + 1)
    assert len({id(m) for m in head.class_embed}) == len({id(m) for m in head.bbox_embed}) == 1
    assert len(head.class_embed) == 3 and len(outputs["aux_outputs"]) == 2
    assert "enc_outputs" not in outputs
    probability = head.class_probability(outputs["pred_logits"])
    rest = outputs["pred_logits"].softmax(-1)[..., -1]
    assert_close(probability.sum(-1) + rest, torch.ones_like(rest))


def test_padding_is_not_read(head):
    """Whatever stands in it, also in a batch whose other image is larger."""
    maps, mask = features()
    before = head(maps, mask)
    maps[0][1, :, 5:] = 7.0
    maps[0][1, :, :, 6:] = -3.0
    after = head(maps, mask)
    alone = head([maps[0][1:, :, :5, :6]], mask[1:, :160, :192])
    for key in ("pred_logits", "pred_boxes"):
        assert_close(after[key], before[key])
        assert_close(alone[key][0], before[key][1])


def test_maps_of_attention(head):
    """Recorded are the weights that PyTorch gives where it is asked for them, of each head."""
    calls = {}
    layers = {("encoder", i): x.self_attn for i, x in enumerate(head.transformer.encoder.layers)}
    layers |= {
        ("decoder", i): x.multihead_attn for i, x in enumerate(head.transformer.decoder.layers)
    }
    handles = [
        module.register_forward_hook(
            lambda m, args, kwargs, out, key=key: calls.update({key: (args, kwargs)}),
            with_kwargs=True,
        )
        for key, module in layers.items()
    ]
    maps, mask = features()
    with capture(head) as captured:
        outputs = head(maps, mask)
    for handle in handles:
        handle.remove()
    assert set(captured.attention) == set(layers)
    for key, module in layers.items():
        args, kwargs = calls[key]
        kwargs = {**kwargs, "need_weights": True, "average_attn_weights": False}
        _, expected = module(*args, **kwargs)
        found = captured.attention[key].weights()
        assert_close(found, expected)
        assert_close(captured.attention[key].weights([4, 2]), expected[:, :, [4, 2]])
        assert not found[1, ..., captured.memory.padding_mask[1]].any()
    plain = head(maps, mask)
    assert torch.equal(plain["pred_boxes"], outputs["pred_boxes"])
    assert not any(len(m._forward_hooks) for m in head.modules())


def test_attention_is_pytorchs(head, monkeypatch):
    """`scaled_dot_product_attention` in each of the layers, captured or not."""
    calls = []

    def counted(*args, original=F.scaled_dot_product_attention, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    head(*features())
    assert len(calls) == 2 + 2 * 3


def test_every_parameter_learns(head):
    outputs = head.train()(*features())
    layers = [outputs, *outputs["aux_outputs"]]
    sum(
        x.sum() + x.square().sum() for o in layers for x in o.values() if torch.is_tensor(x)
    ).backward()
    still = {n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


def test_initial_weights():
    """As the authors': Xavier in the transformer, PyTorch's own elsewhere, no prior of classes."""
    torch.manual_seed(0)
    head = small_detr(d_model=32)
    weight = head.transformer.encoder.layers[0].linear1.weight
    bound = (6 / (32 + 24)) ** 0.5
    assert 0.9 * bound < weight.abs().max() <= bound
    assert head.class_embed[0].bias.abs().max() <= 32**-0.5
    assert head.bbox_embed[0].layers[-1].weight.any()
    assert head.query_embed.weight.detach().std() == pytest.approx(1, abs=0.15)


def test_sixteen_bits():
    """Boxes and probabilities are float32."""
    head = small_detr().bfloat16().eval()
    maps, mask = features()
    outputs = head([m.bfloat16() for m in maps], mask)
    assert outputs["pred_boxes"].dtype == torch.float32
    assert head.class_probability(outputs["pred_logits"]).dtype == torch.float32
