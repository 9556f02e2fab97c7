"""Activation checkpointing: the same outputs, gradients and statistics, in less memory."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr import DeformableDETR
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.modeling.activation_checkpointing import blocks_of

from .conftest import FAMILY, SYSTEMS, VARIANTS
from .test_meta_arch import ONE_BOX, FixedHead, TinyBackbone, build, sample

PARTS = ["BACKBONE", "ENCODER", "DECODER"]


def on(*parts):
    return [x for p in parts for x in (f"MODEL.DETR.ACTIVATION_CHECKPOINTING.{p}", True)]


def batch():
    return [sample(97, 131), sample(60, 90, [(5.0, 6.0, 40.0, 50.0)] * 2, seed=1)]


def step(model):
    torch.manual_seed(3)  # of the dropout
    losses = model.train()(batch())
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "variant, parts",
    [(v, parts) for v in VARIANTS for parts in [[part] for part in PARTS] + [PARTS]]
    + [(system, PARTS) for system in SYSTEMS],
)
def test_nothing_changes(variant, parts):
    """To the bit, with dropout and training BatchNorm; in bfloat16 too."""
    opts = ["MODEL.DETR.DROPOUT", 0.3, "MODEL.RESNETS.NORM", "BN",
            "SOLVER.AMP.ENABLED", variant == "refine"]  # fmt: skip
    plain, other = build(*opts, config=FAMILY[variant]), build(
        *opts, *on(*parts), config=FAMILY[variant]
    )
    assert_close(dict(other.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    for _ in range(2):  # the statistics of the first are seen by none of the second
        for found, expected in zip(step(other), step(plain)):
            assert_close(found, expected, rtol=0, atol=0)
    assert_close(dict(other.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    again, expected = (m.eval()(batch()) for m in (copy.deepcopy(other), plain))
    for x, y in zip(again, expected):
        assert_close(x["instances"].scores, y["instances"].scores, rtol=0, atol=0)


def layers_run(model, part):
    """How often the layers of a part run in one step."""
    transformer, count = model.head.transformer, 0
    layers = {
        "BACKBONE": [model.backbone.res3[0].conv2, model.backbone.res5[-1].conv3],
        "ENCODER": [layer.linear1 for layer in transformer.encoder.layers],
        "DECODER": [layer.linear1 for layer in transformer.decoder.layers],
    }[part]

    def counted(*_):
        nonlocal count
        count += 1

    handles = [layer.register_forward_hook(counted) for layer in layers]
    step(model)
    for handle in handles:
        handle.remove()
    return count / len(layers)


@pytest.mark.parametrize("part", PARTS)
def test_only_that_part_runs_twice(part):
    model = build(*on(part))
    assert {p: layers_run(model, p) for p in PARTS} == {p: 1 + (p == part) for p in PARTS}


def kept(model):
    """Bytes that the forward pass keeps for the backward pass, each storage once."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.train()(batch())
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for key, (size, _) in storages.items() if key not in own), losses


def test_memory():
    """Less is kept the more parts are checkpointed; of an encoder layer no hidden state."""
    sizes = [kept(build(*on(*PARTS[:n])))[0] for n in range(4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[3] < 0.5 * sizes[0]
    assert all(a > b for a, b in zip(sizes, sizes[1:]))


@pytest.mark.parametrize(
    "part, says",
    [
        ("head", "'backbone', 'encoder' and 'decoder', got 'head'"),
        ("backbone", "TinyBackbone is no sequence of blocks; set it to False"),
    ],
)
def test_what_cannot_be(part, says):
    with pytest.raises(InputError, match=says):
        DeformableDETR(
            backbone=TinyBackbone(),
            head=FixedHead(*ONE_BOX),
            criterion=None,
            in_features=["fine", "coarse"],
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
            activation_checkpointing=[part],
        )


def test_blocks():
    stack = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU())
    assert list(blocks_of(nn.ModuleDict({"a": stack}))) == [stack[0]]
