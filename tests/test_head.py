"""Heads of all layers and refinement; the whole network as invariants."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import MLP, HungarianMatcher, SetCriterion

from .modeling_cases import (
    HEADS,
    NUM_CLASSES,
    NUM_QUERIES,
    linear,
    randomise,
    small_features,
    small_head,
    small_targets,
    small_transformer,
)

variants = pytest.mark.parametrize("variant", HEADS)


def build(variant, **kwargs):
    return small_head(**HEADS[variant], **kwargs)


def inputs(variant, **kwargs):
    return small_features(HEADS[variant].get("num_levels", 4), **kwargs)


def total_loss(outputs, targets):
    return sum(SetCriterion(HungarianMatcher())(outputs, targets).values())


def test_mlp():
    """Linear, ReLU, linear, ReLU, linear."""
    mlp, x = randomise(MLP(5, 7, 4, 3)), torch.randn(2, 3, 5)
    first, second, third = mlp.layers
    expected = linear(third, linear(second, linear(first, x).clamp(min=0)).clamp(min=0))
    assert_close(mlp(x), expected)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(7, 5), (7, 7), (4, 7)]


@variants
def test_class_heads(variant):
    """Parity F39: a prior of 0.01, weights as nn.Linear starts them."""
    for layer in build(variant).class_embed:
        assert_close(layer.bias, torch.full((NUM_CLASSES,), -4.59512))
        bound = 1 / math.sqrt(32)
        assert 0.9 * bound < layer.weight.abs().max() <= bound


@variants
def test_box_heads(variant):
    """Parity F40, F41: where -2 is, which heads are one module, how many there are."""
    head = build(variant)
    wh_bias = {"refine": [-2.0, 0.0, 0.0], "two_stage": [0.0] * 4}.get(variant, [-2.0] * 3)
    assert len(head.class_embed) == len(head.bbox_embed) == len(wh_bias)
    for mlp, expected in zip(head.bbox_embed, wh_bias):
        assert len(mlp.layers) == 3
        assert not mlp.layers[-1].weight.any()
        assert mlp.layers[-1].bias.tolist() == [0, 0, expected, expected]
    distinct = len(wh_bias) if HEADS[variant].get("with_box_refine") else 1
    for heads in (head.class_embed, head.bbox_embed):
        assert len({id(module) for module in heads}) == distinct


def test_initial_boxes():
    """Parity F40: boxes start at the reference, 0.119 wide and high, in every layer."""
    for variant in ("multi_scale", "refine"):
        outputs = build(variant)(*inputs(variant))
        for layer in (outputs, *outputs["aux_outputs"]):
            assert_close(layer["pred_boxes"][..., 2:], torch.full((2, 9, 2), 0.119203))


def test_two_stage_needs_refinement():
    """The message names the key that helps."""
    with pytest.raises(ValueError, match="WITH_BOX_REFINE"):
        small_head(two_stage=True, with_box_refine=False)


@variants
def test_outputs(variant):
    """Parity H56: keys, shapes and types; boxes in (0, 1)."""
    outputs = build(variant)(*inputs(variant))
    expected = {"pred_logits", "pred_boxes", "aux_outputs"}
    assert set(outputs) == expected | ({"enc_outputs"} if variant == "two_stage" else set())
    assert len(outputs["aux_outputs"]) == 2
    for layer in (outputs, *outputs["aux_outputs"]):
        assert layer["pred_logits"].shape == (2, NUM_QUERIES, NUM_CLASSES)
        assert layer["pred_boxes"].shape == (2, NUM_QUERIES, 4)
        assert ((layer["pred_boxes"] > 0) & (layer["pred_boxes"] < 1)).all()


@variants
def test_boxes_of_each_layer(variant):
    """Parity F43, F44: sigmoid(delta + logit of the reference), refined or the same point again."""
    head = randomise(build(variant), std=0.3)
    seen = []
    layers = head.transformer.decoder.layers
    for layer in layers:
        layer.register_forward_hook(lambda module, args, out: seen.append((args[2], out)))
    outputs = head(*inputs(variant, sizes=((72, 104),)))
    reference = seen[0][0][:, :, 0]  # no padding: the same on all levels
    assert reference.shape[-1] == (4 if variant == "two_stage" else 2)
    for i, layer in enumerate((*outputs["aux_outputs"], outputs)):
        state = seen[i][1]
        assert_close(seen[i][0], reference[:, :, None].expand_as(seen[i][0]))
        assert_close(layer["pred_logits"], linear(head.class_embed[i], state))
        delta = head.bbox_embed[i](state)
        logit = (reference / (1 - reference)).log()
        logit = torch.cat((logit, torch.zeros_like(delta)), -1)[..., :4]
        expected = 1 / (1 + (-delta - logit).exp())
        assert_close(layer["pred_boxes"], expected, rtol=0, atol=1e-5)
        if head.with_box_refine:
            reference = layer["pred_boxes"]


def test_reference_update():
    """Parity F43, F45: detached with refinement; the very same point without."""
    query = torch.randn(1, NUM_QUERIES, 32)
    for variant in HEADS:
        head = randomise(build(variant))
        reference = torch.rand(1, NUM_QUERIES, 2, requires_grad=True)
        boxes, following = head.update_reference(1, query, query, reference)
        boxes.sum().backward()
        assert reference.grad.any()
        if head.with_box_refine:
            assert torch.equal(following, boxes) and not following.requires_grad
        else:
            assert following is reference


def test_eps_of_the_reference():
    """The eps of the inverse sigmoid belongs to the model."""
    head = build("refine")
    nn.init.zeros_(head.bbox_embed[1].layers[-1].bias)
    for eps in (1e-5, 1e-3):
        head.inverse_sigmoid_eps = eps
        query = torch.randn(1, 1, 32)
        boxes, _ = head.update_reference(1, query, query, torch.zeros(1, 1, 4))
        assert_close(boxes, torch.full((1, 1, 4), eps))


@variants
def test_gradients_reach_every_parameter(variant):
    """Parity E38: none is unused, all are finite."""
    head = randomise(build(variant), std=0.3).train()
    total_loss(head(*inputs(variant)), small_targets()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@variants
def test_evaluation_is_training(variant):
    """PEERS 7.1: without dropout the same numbers, and the padding mask matters in both."""
    head = randomise(build(variant), std=0.3)
    features, mask = inputs(variant, sizes=((40, 104), (72, 50)))
    trained = head.train()(features, mask)["pred_boxes"]
    with torch.no_grad():
        evaluated = head.eval()(features, mask)["pred_boxes"]
        unmasked = head(features, torch.zeros_like(mask))["pred_boxes"]
    assert_close(trained, evaluated, rtol=0, atol=1e-5)
    assert (evaluated - unmasked).abs().amax((1, 2)).min() > 1e-3


@variants
def test_images_are_independent(variant):
    """Parity H56: the order of images is theirs, and no image sees another."""
    head = randomise(build(variant), std=0.3)
    features, mask = inputs(variant)
    both = head(features, mask)["pred_boxes"]
    flipped = head([x.flip(0) for x in features], mask.flip(0))["pred_boxes"]
    assert_close(flipped, both.flip(0), rtol=0, atol=1e-5)
    if variant != "single_scale":  # whose norm needs more than one cell per channel
        alone = head([x[1:] for x in features], mask[1:])["pred_boxes"]
        assert_close(alone, both[1:], rtol=0, atol=1e-5)


def test_queries_can_be_permuted():
    """Parity H56: permuting the learned queries permutes the outputs and leaves the loss."""
    head = randomise(build("refine"), std=0.3)
    features, mask = inputs("refine")
    before = head(features, mask)
    order = torch.randperm(NUM_QUERIES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.query_embed.weight.copy_(head.query_embed.weight[order])
    after = head(features, mask)
    assert_close(after["pred_boxes"], before["pred_boxes"][:, order], rtol=0, atol=1e-5)
    targets = small_targets()
    assert_close(total_loss(after, targets), total_loss(before, targets))


@variants
def test_autocast(variant):
    """Parity I72, B12: boxes and losses float32 and finite in bfloat16, near those in float32."""
    head = randomise(build(variant), std=0.2)
    features, mask = inputs(variant)
    positions = []
    head.position_embedding.register_forward_hook(lambda m, args, out: positions.append(out))
    full = total_loss(head(features, mask), small_targets())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(features, mask)
        losses = SetCriterion(HungarianMatcher())(outputs, small_targets())
    assert all(p.dtype == torch.float32 for p in positions)
    assert outputs["pred_logits"].dtype == torch.bfloat16
    layers = [outputs, *outputs["aux_outputs"], outputs.get("enc_outputs", outputs)]
    for layer in layers:
        assert layer["pred_boxes"].dtype == torch.float32
        assert layer["pred_boxes"].isfinite().all()
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    assert_close(sum(losses.values()), full, rtol=0.1, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_references_under_autocast():
    """Parity I72: what cross-attention looks around is float32 in every layer."""
    for variant in HEADS:
        head = randomise(build(variant), std=0.2)
        seen = []
        for layer in head.transformer.decoder.layers:
            layer.cross_attn.register_forward_hook(lambda m, args, out: seen.append(args[1]))
        with torch.autocast("cpu", torch.bfloat16):
            head(*inputs(variant))
        assert len(seen) == 3 and all(x.dtype == torch.float32 for x in seen)


@variants
def test_image_smaller_than_the_coarsest_stride(variant):
    """One cell per level is left of the small image; nothing is divided by zero."""
    head = randomise(build(variant), std=0.3)
    features, mask = inputs(variant, sizes=((7, 11), (129, 70)))
    outputs = head(features, mask)
    assert outputs["pred_boxes"].isfinite().all()
    total_loss(outputs, small_targets((1, 0))).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@variants
def test_no_targets_anywhere(variant):
    """Finite losses and gradients from a batch of images without objects."""
    head = randomise(build(variant), std=0.3)
    loss = total_loss(head(*inputs(variant)), small_targets((0, 0)))
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_number_of_queries_of_a_proposing_transformer():
    """Its own, and there is no learned query."""
    head = small_head(True, True, transformer=small_transformer(True, num_queries=4))
    assert head.query_embed is None
    assert head(*small_features())["pred_boxes"].shape == (2, 4, 4)


@pytest.mark.parametrize("name", HEADS)
def test_without_a_mask_as_with_an_empty_one(name):
    """To the bit, outputs and gradients."""
    head = randomise(small_head(**HEADS[name]))
    features, mask = small_features(HEADS[name].get("num_levels", 4), sizes=((72, 104),) * 2)
    assert not mask.any()
    found = []
    for given in (mask, None):
        leaves = [x.clone().requires_grad_() for x in features]
        outputs = head(leaves, given)
        parts = [outputs, *outputs["aux_outputs"], outputs.get("enc_outputs", {})]
        tensors = [p[key] for p in parts for key in ("pred_logits", "pred_boxes") if key in p]
        loss = sum(x.square().sum() for x in tensors)
        found.append([*tensors, *torch.autograd.grad(loss, [*leaves, *head.parameters()])])
    for with_mask, without in zip(*found, strict=True):
        assert torch.equal(with_mask, without)
