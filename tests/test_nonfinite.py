"""A step that is not finite has a cause, which is planted here, and named by the error."""

import math
import re

import pytest
import torch
from torch import nn

from .nonfinite_cases import (
    LAYERS,
    NAMES,
    RECOMPUTED,
    BadGradient,
    batch,
    error_of,
    model_of,
    parts,
    plant,
    step_of,
)
from .test_meta_arch import build

#: A parameter that is ruined, and the module whose own code computes with it.
WEIGHTS = {
    "backbone.stem.conv1.weight": "backbone.stem.conv1",
    "head.input_proj.0.1.bias": "head.input_proj.0.1",
    "head.query_embed.weight": "head",
    "head.transformer.level_embed": "head",  # whose code calls a method of the transformer
    "head.transformer.encoder.layers.0.self_attn.value_proj.weight": "",
    "head.transformer.encoder.layers.1.self_attn.attention_weights.bias": "",
    "head.transformer.decoder.layers.1.linear1.bias": "",
    "head.transformer.decoder.layers.0.self_attn.out_proj.bias": (
        "head.transformer.decoder.layers.0.self_attn"  # nor is this projection called
    ),
    "head.class_embed.1.weight": "",
    "head.bbox_embed.1.layers.2.bias": "",
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weight(weight):
    # Infinite, these lead to what is finite again: a box of 1, a sample that is not read.
    swallowed = weight in ("head.bbox_embed.1.layers.2.bias", "head.transformer.level_embed")
    bad = math.nan if swallowed else math.inf
    model = model_of()
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[0] = bad
    error = error_of(model)
    module, what, images, blamed = parts(error)
    assert module == (WEIGHTS[weight] or weight.rpartition(".")[0])
    assert blamed == f"a weight that was not finite before this step: {weight}"
    assert "computes" in what and "gradient" not in what
    assert images == "every image"
    assert error.remedy is None


def test_statistics_that_are_ruined():
    """Buffers are weights too, where they are read."""
    model = model_of("MODEL.RESNETS.NORM", "FrozenBN")
    model.backbone.stem.conv1.norm.running_var[2] = math.nan
    module, _, _, blamed = parts(error_of(model))
    assert module == "backbone.stem.conv1.norm"
    assert blamed.endswith("before this step: backbone.stem.conv1.norm.running_var")


@pytest.mark.parametrize(
    "scaled, module",
    [
        # A product of two numbers of 1e29 is beyond float32, and so is the square of one.
        (["encoder.layers.0.linear1", "encoder.layers.0.linear2"], "encoder.layers.0.linear2"),
        (["encoder.layers.0.linear1"], "encoder.layers.0.norm2"),
        (["encoder.layers.1.self_attn.value_proj"], "encoder.layers.1.norm1"),
        (["decoder.layers.0.self_attn"], "decoder.layers.0.self_attn"),
    ],
)
def test_overflow(scaled, module):
    model = model_of()
    with torch.no_grad():
        for name in scaled:
            for parameter in model.head.transformer.get_submodule(name).parameters():
                parameter.mul_(1e30)
    error = error_of(model)
    found, _, images, blamed = parts(error)
    assert found == f"head.transformer.{module}" and images == "every image"
    assert blamed.startswith("an overflow: in float32, of finite numbers of at most ")
    weights = {n: p.abs().max().item() for n, p in model.named_parameters()}
    own = max(value for name, value in weights.items() if name.startswith(found))
    name, largest = max(weights.items(), key=lambda item: item[1])
    assert f"weights of at most {own:.3g}; " in blamed
    assert blamed.endswith(f"the largest weight of the model is {largest:.3g}, in {name}")
    assert error.remedy is None


def test_overflow_in_half_precision():
    model = model_of("SOLVER.AMP.ENABLED", True)
    with torch.no_grad():
        for linear in ("linear1", "linear2"):
            model.get_submodule(f"{LAYERS}.{linear}").weight.mul_(1e30)
    module, _, _, blamed = parts(error_of(model))
    assert module == f"{LAYERS}.linear2" and blamed.startswith("an overflow: in bfloat16, ")


def test_the_norm_of_finite_gradients_overflows():
    model = model_of()
    with torch.no_grad():
        model.head.class_embed[1].weight.mul_(1e30)
    error = str(error_of(model))
    assert "the gradient norm of the model is inf" in error
    assert (
        "process 0: all gradients are finite, but their norm is not. To blame is an over" in error
    )
    assert error.endswith(", in head.class_embed.1.weight")


class FromOutside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[1, 3, 2] = math.nan
        return gradient


class CustomGradient(nn.Module):
    def forward(self, x):
        return FromOutside.apply(x)


@pytest.mark.parametrize("opts", [[], RECOMPUTED], ids=["kept", "recomputed"])
@pytest.mark.parametrize("find_nonfinite", [False, True])
@pytest.mark.parametrize(
    "planted, image, operation",
    [(BadGradient(2), 2, "SqrtBackward0"), (CustomGradient(), 1, "FromOutsideBackward")],
    ids=["sqrt", "custom"],
)
def test_gradient(planted, image, operation, find_nonfinite, opts):
    """Of a forward pass in which all is finite."""
    model = build(*opts)
    plant(model, f"{LAYERS}.dropout3", planted)
    error = error_of(model, find_nonfinite=find_nonfinite)
    module, what, images, blamed = parts(error)
    assert module == f"{LAYERS}.dropout3"
    assert what == f"computes the first gradient that is not finite ({operation})"
    assert images == f"image {image} of the batch ({NAMES[image]})"
    assert blamed.startswith("a derivative that is not finite")
    assert f"Correct {type(planted).__name__}" in error.remedy


def test_gradient_of_a_loss(monkeypatch):
    """The term is named, and the parameters whose gradient it is."""
    model = model_of()
    loss_boxes = model.criterion.loss_boxes

    def with_root(boxes, *args):
        root = (boxes - boxes.detach()).square().sum().sqrt()
        return loss_boxes(boxes, *args) | {"loss_giou": root}

    monkeypatch.setattr(model.criterion, "loss_boxes", with_root)
    module, what, images, _ = parts(error_of(model))
    assert module == "criterion" and images == "every image"
    assert re.fullmatch(r"computes the first gradient of loss_giou(_\d)? that .*SqrtB.*", what)


def test_an_infinite_number_that_is_meant():
    """A mask; it is not taken for the fault that comes after it."""

    class Mask(nn.Module):
        def forward(self, x):
            return torch.full_like(x, -math.inf)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = Mask()

        def forward(self, x):
            return x + self.mask(x).exp()

    model = model_of()
    plant(model, f"{LAYERS}.dropout1", Masked())
    step_of(model, find_nonfinite=True).update(batch(), lambda losses: None)
    plant(model, f"{LAYERS}.dropout3", BadGradient(0))
    assert parts(error_of(model))[0] == f"{LAYERS}.dropout3"
