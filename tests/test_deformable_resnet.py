"""Deformable convolutions in the ResNet: detectron2's numbers, and how it is built and traced."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr import load_config
from detectron2_ddetr.backbones.deformable_resnet import DeformableBottleneck
from detectron2_ddetr.errors import InputError, UnsupportedError
from detectron2_ddetr.toolbox import TOOLBOX, build_backbone

from . import golden_cases as golden
from .conftest import CONFIGS, small_cfg
from .test_backbone import FULL

NODE = "MODEL.RESNETS."
ON = [NODE + "DEFORM_ON_PER_STAGE", [False, True, True, True]]
GOLDEN = [f"v{version}_g{groups}" for version in (1, 2) for groups in (1, 2)]


def options(version, groups=1):
    return [*ON, NODE + "DEFORM_MODULATED", version == 2, NODE + "DEFORM_NUM_GROUPS", groups]


def random_offsets(module, std=0.05):
    """Otherwise they are zero, and hide what is wrong with them."""
    for name, parameter in module.named_parameters():
        if "conv2_offset" in name:
            nn.init.normal_(parameter, std=std)


@pytest.fixture(scope="module", params=GOLDEN)
def case(request):
    """(the golden numbers, our backbone with their weights), FREEZE_AT 2."""
    case = golden.load(f"dcn_resnet_{request.param}")
    keys = {key: value for key, value in case["config"].items() if key.isupper()}
    cfg = small_cfg(*FULL, "MODEL.BACKBONE.FREEZE_AT", keys.pop("FREEZE_AT"))
    for key, value in keys.items():
        cfg.MODEL.RESNETS[key] = value
    backbone = build_backbone(cfg)
    seed, rules = case["config"]["seed"], case["config"]["scale_rules"]
    weights = golden.official_state_dict(f"dcn_{request.param}", seed, rules)
    backbone.load_state_dict(weights, strict=True)
    return case, backbone


def test_golden_features(case):
    """Of detectron2's own ResNet, and the offsets in it."""
    case, backbone = case
    offsets = {}
    for name in ("res3.0", "res4.3", "res5.0", "res5.2"):
        layer = backbone.get_submodule(name).conv2_offset
        layer.register_forward_hook(lambda *x, name=name: offsets.update({name: x[-1][0]}))
    with torch.no_grad():
        maps = backbone(case["image"][None])
    for name in ("res3", "res4", "res5"):
        feature, tolerance = maps[name][0], 1e-5 * case["noise"]["scale"][name]
        assert feature.shape == tuple(case[f"{name}_shape"])
        assert_close(feature[case[f"{name}_channels"]], case[name], rtol=0, atol=tolerance)
        mean = feature.double().mean((1, 2))
        assert_close(mean, case[f"{name}_channel_mean"], rtol=0, atol=tolerance)
    for name, found in offsets.items():
        step = 2 if name == "res3.0" else 1
        assert_close(found[:, ::step, ::step], case[f"offset/{name}"], rtol=0, atol=1e-4)


def test_golden_gradients(case):
    case, backbone = case
    backbone.zero_grad()
    sum(x.mean() for x in backbone(case["image"][None]).values()).backward()
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    assert set(found) == set(case["grad_names"])
    norms = torch.stack([found[name].double().norm() for name in case["grad_names"]])
    assert_close(norms, case["grad_norms"], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "version, groups, more", [(1, 1, 580_842), (2, 1, 871_263), (2, 4, 3_485_052)]
)
def test_parameters(version, groups, more):
    """What 13 blocks add: 9 taps of the width, for 18 or 27 numbers per group, and a bias."""

    def parameters(*opts):
        with torch.device("meta"):
            return sum(p.numel() for p in build_backbone(small_cfg(*FULL, *opts)).parameters())

    assert parameters(*options(version, groups)) - parameters() == more
    blocks = {128: 4, 256: 6, 512: 3}
    numbers = groups * (18 if version == 1 else 27)
    assert more == sum(n * numbers * (9 * width + 1) for width, n in blocks.items())


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="names of detectron2's own block")
def test_names_of_detectron2(monkeypatch):
    """In the same order, so that a state of an optimiser fits as well."""
    from detectron2.layers import Conv2d
    from detectron2.modeling.backbone import resnet

    class Stub(Conv2d):
        def __init__(self, *args, deformable_groups, **kwargs):
            super().__init__(*args, **kwargs)

    for name in ("DeformConv", "ModulatedDeformConv"):  # compiled or not
        monkeypatch.setattr(resnet, name, Stub)
    cfg = small_cfg(*options(2, 2))
    ours = build_backbone(cfg)
    theirs = resnet.build_resnet_backbone(cfg, resnet.ShapeSpec(channels=3))
    for kind in ("state_dict", "named_parameters"):
        names, expected = (dict(getattr(model, kind)()) for model in (ours, theirs))
        assert list(names) == list(expected)
        assert all(names[name].shape == expected[name].shape for name in names)
    frozen, expected = (
        [name for name, p in m.named_parameters() if not p.requires_grad] for m in (ours, theirs)
    )
    assert frozen == expected


@torch.no_grad()
def test_it_begins_as_the_plain_one():
    """v1 computes the same; the modulation of v2 halves what res3 and after would be."""
    torch.manual_seed(0)
    plain, image = build_backbone(small_cfg()), torch.randn(1, 3, 64, 96)
    for version in (1, 2):
        cfg = small_cfg(*options(version))
        backbone = build_backbone(cfg)
        missing, unexpected = backbone.load_state_dict(plain.state_dict(), strict=False)
        assert len(missing) == 26 and all(".conv2_offset." in name for name in missing)
        assert not unexpected
        if version == 2:
            for name, block in backbone.named_modules():
                if isinstance(block, DeformableBottleneck):
                    block.conv2.weight.mul_(2)
        for found, expected in zip(backbone(image).values(), plain(image).values(), strict=True):
            assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("stages, frozen", [([True] * 4, 2), ([False] * 3 + [True], 0)])
def test_the_stages_of_the_key(stages, frozen):
    """And no offset is trained in a stage that is frozen."""
    cfg = small_cfg(ON[0], stages, "MODEL.BACKBONE.FREEZE_AT", frozen)
    backbone = build_backbone(cfg)
    for i, deformable in zip(range(2, 6), stages):
        for block in getattr(backbone, f"res{i}"):
            assert isinstance(block, DeformableBottleneck) == deformable
            trained = {p.requires_grad for p in block.parameters()}
            assert trained == {i > frozen}


@pytest.mark.parametrize("norm", ["", "BN"])
def test_other_norms(norm):
    """None at all, or one that is trained."""
    opts = [*options(2), NODE + "NORM", norm, "MODEL.BACKBONE.FREEZE_AT", 0]
    backbone = build_backbone(small_cfg(*opts))
    sum(x.square().mean() for x in backbone(torch.rand(2, 3, 64, 96)).values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert ("res3.0.conv2.norm.weight" in dict(backbone.named_parameters())) == (norm == "BN")


def test_stages_that_nobody_reads_are_not_there():
    cfg = small_cfg(*ON, NODE + "OUT_FEATURES", ["res4"], "MODEL.DETR.IN_FEATURES", ["res4"])
    backbone = build_backbone(cfg)
    assert not hasattr(backbone, "res5")
    assert isinstance(backbone.res4[5], DeformableBottleneck)


@pytest.mark.parametrize("in_1x1", [False, True])
def test_stride_and_dilation(in_1x1):
    """conv2_offset has those of conv2, also of DC5, whose dilation begins at the second block."""
    opts = [NODE + "RES5_DILATION", 2, NODE + "STRIDE_IN_1X1", in_1x1]
    backbone = build_backbone(small_cfg(*options(2), *opts))
    found = []
    for name, block in backbone.named_modules():
        if isinstance(block, DeformableBottleneck):
            for key in ("kernel_size", "stride", "padding", "dilation"):
                assert getattr(block.conv2_offset, key) == getattr(block.conv2, key), (name, key)
            found.append((block.conv2.stride[0], block.conv2.dilation[0]))
    first = 1 if in_1x1 else 2
    assert found[:5] == [(first, 1), *[(1, 1)] * 3, (first, 1)]
    assert found[-3:] == [(1, 1), (1, 2), (1, 2)]
    maps = backbone(torch.rand(1, 3, 70, 101))
    assert maps["res5"].shape[2:] == maps["res4"].shape[2:] == (5, 7)


@pytest.mark.parametrize(
    "opts, words",
    [
        ([NODE + "DEFORM_NUM_GROUPS", 3], "DEFORM_NUM_GROUPS. is 3, .* the 16 channels .* in res3"),
        ([NODE + "DEFORM_NUM_GROUPS", 0], "DEFORM_NUM_GROUPS. is 0"),
        ([ON[0], [True, True]], "DEFORM_ON_PER_STAGE must be True or False for each of res2"),
        ([ON[0], [0, 1, 1, 1]], "DEFORM_ON_PER_STAGE must be True or False"),
        ([NODE + "DEPTH", 34, NODE + "RES2_OUT_CHANNELS", 64], "DEPTH 34 has no bottlenecks"),
    ],
)
def test_values_that_cannot_be(opts, words):
    with pytest.raises(InputError, match=words):
        build_backbone(small_cfg(*ON, *opts))


@pytest.mark.parametrize("name", ["build_resnet_backbone", "build_resnet_fpn_backbone"])
def test_builders_of_detectron2_need_its_extension(name, monkeypatch):
    """Which says so instead of an ImportError; with it, they are left alone."""
    opts = [*map(str, ON), "MODEL.BACKBONE.NAME", name]
    path = str(CONFIGS / "deformable_detr" / "deformable_detr_R_50_50ep.yaml")
    with pytest.raises(UnsupportedError, match=f"{name} needs .*; build_detr_resnet_backbone does"):
        load_config(path, opts)
    monkeypatch.setattr("detectron2_ddetr.config_rules.has_compiled_layers", lambda: True)
    assert load_config(path, opts)


class Maps(nn.Module):
    """A backbone whose result can be traced."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return tuple(self.backbone(x).values())


@torch.no_grad()
def test_tracing():
    """For images of any size, as all backbones."""
    torch.manual_seed(0)
    maps = Maps(build_backbone(small_cfg(*options(2, 2)))).eval()
    random_offsets(maps)
    traced = torch.jit.trace(maps, torch.rand(1, 3, 64, 96), check_trace=False)
    image = torch.rand(2, 3, 96, 70)
    for found, expected in zip(traced(image), maps(image), strict=True):
        assert_close(found, expected)
