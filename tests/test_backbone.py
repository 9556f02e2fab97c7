"""The ResNet equals torchvision's, the authors' own, and is frozen as theirs."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet50

from detectron2_ddetr.checkpoint.torchvision import convert_torchvision_state_dict
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import TOOLBOX, build_backbone, build_model

from .conftest import small_cfg

FULL = [
    # fmt: off
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 64,
    # fmt: on
]
DC5 = "deformable_detr/deformable_detr_R_50_single_scale_dc5_50ep.yaml"


def torchvision_resnet(dc5):
    """Random weights, and statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    model = resnet50(weights=None, replace_stride_with_dilation=[False, False, dc5]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5)):
                nn.init.uniform_(tensor, low, low + 1)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
    return model


def torchvision_features(model, x):
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    features = {}
    for i in range(1, 5):
        x = features[f"res{i + 1}"] = getattr(model, f"layer{i}")(x)
    return features


@pytest.mark.parametrize("dc5", [False, True])
@torch.no_grad()
def test_features_equal_torchvision(dc5):
    """Parity A3, A4; PEERS 7.14: also where the stride of res5 becomes dilation."""
    reference = torchvision_resnet(dc5)
    cfg = small_cfg(*FULL, config=DC5) if dc5 else small_cfg(*FULL)
    backbone = build_backbone(cfg)
    state = convert_torchvision_state_dict(reference.state_dict())
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items()})
    x = torch.randn(2, 3, 70, 101)
    expected = torchvision_features(reference, x)
    features = backbone(x)
    assert set(features) == ({"res5"} if dc5 else {"res3", "res4", "res5"})
    for name, feature in features.items():
        assert_close(feature, expected[name], rtol=1e-4, atol=1e-4 * expected[name].max().item())
    assert features["res5"].shape == ((2, 2048, 5, 7) if dc5 else (2, 2048, 3, 4))
    if dc5:
        assert backbone.res5[0].conv2.dilation == (1, 1)
        assert all(block.conv2.dilation == (2, 2) for block in backbone.res5[1:])
        # detectron2's own builder dilates the first block too: the test above can fail.
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        plain = build_backbone(cfg)
        plain.load_state_dict(backbone.state_dict())
        difference = (plain(x)["res5"] - expected["res5"]).abs().max()
        assert difference > 0.01 * expected["res5"].max()


@pytest.mark.parametrize("depth, channels", [(18, 64), (101, 256)])
def test_other_depths_build(depth, channels):
    cfg = small_cfg("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", channels)
    backbone = build_backbone(cfg)
    assert [backbone.output_shape()[f"res{i}"].stride for i in (3, 4, 5)] == [8, 16, 32]


def test_frozen_norms_are_buffers():
    """Parity A5: four buffers each, no parameters, unchanged by training mode."""
    with torch.device("meta"):
        backbone = build_backbone(small_cfg(*FULL))
    norms = [m for m in backbone.modules() if type(m).__name__ == "FrozenBatchNorm2d"]
    assert len(norms) == 53 and not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert all(not list(m.parameters()) for m in norms)
    # SPEC 1.21: 106 240 values in buffers.
    assert sum(b.numel() for m in norms for b in m.buffers()) == 4 * 26560 == 106240


def test_trainable_set():
    """Parity A5: the convolutions of three stages; PEERS 7.5: also where WEIGHTS is empty."""
    cfg = small_cfg(*FULL, "MODEL.DEVICE", "meta")
    assert cfg.MODEL.WEIGHTS == ""
    with torch.device("meta"):
        model = build_model(cfg)
    trainable = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert len(trainable) == 42
    assert sum(p.numel() for p in trainable.values()) == 23_232_512
    assert all(n.startswith(("res3.", "res4.", "res5.")) for n in trainable)
    assert all(p.dim() == 4 for p in trainable.values())
    assert all(p.requires_grad for p in model.head.parameters())


def test_stem_and_res2_get_no_gradient():
    """Parity A6: while every convolution above gets one."""
    backbone = build_backbone(small_cfg()).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    sum(f.square().sum() for f in backbone(torch.rand(1, 3, 64, 96)).values()).backward()
    for name, parameter in backbone.named_parameters():
        frozen = name.startswith(("stem.", "res2."))
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.abs().sum() > 0, name
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="the embedded host has ResNets only")
def test_feature_pyramid_of_detectron2():
    """A backbone of detectron2 that knows nothing of us: other names, strides, divisibility."""
    cfg = small_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 24
    cfg.MODEL.DETR.IN_FEATURES = ["p3", "p4", "p5"]
    model = build_model(cfg).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.rand(3, 70, 101) * 255}])
    assert result["instances"].image_size == (70, 101)
    assert len(result["instances"]) > 0


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["DEPTH", 49], "DEPTH must be one of 18, 34, 50, 101, 152, got 49"),
        (["DEPTH", 34, "RES2_OUT_CHANNELS", 256], "DEPTH 34 needs RES2_OUT_CHANNELS 64"),
        (["RES5_DILATION", 4], "RES5_DILATION must be one of 1, 2, got 4"),
        (["NORM", "batch"], "NORM must be one of 'FrozenBN', .*got 'batch'"),
        (["NORM", "GN", "STEM_OUT_CHANNELS", 48], "STEM_OUT_CHANNELS .48.*divisible by 32"),
        (["NUM_GROUPS", 0], "NUM_GROUPS must be at least 1"),
        (["OUT_FEATURES", "['res6']"], "OUT_FEATURES must name some of .*res5, got .'res6'"),
        (["OUT_FEATURES", "[]"], "OUT_FEATURES must name some"),
    ],
)
def test_values_that_make_no_resnet(opts, words):
    pairs = [f"MODEL.RESNETS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(InputError, match=words):
        build_backbone(small_cfg(*pairs))


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_backbone_with_frozen_stages_loads_its_own_weights(norm):
    """BatchNorm that is frozen keeps its counter of batches."""
    cfg = small_cfg("MODEL.RESNETS.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", 2)
    state = build_backbone(cfg).state_dict()
    assert ("stem.conv1.norm.num_batches_tracked" in state) == (norm == "BN")
    build_backbone(cfg).load_state_dict(state)
