"""What a model costs: the numbers of the papers, and two counters that agree."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detectron2_ddetr import cli, load_config
from detectron2_ddetr.analysis.attention_cost import (
    LAYERS,
    Setting,
    curves,
    macs,
    pyramid,
    setting_of,
)
from detectron2_ddetr.analysis.counts import Network, count, count_by_fvcore, model_on_meta
from detectron2_ddetr.analysis.report import analyze, default_size
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model
from detectron2_ddetr.visualization import attention_cost

from . import family_cases as family
from .conftest import CONFIGS, FAMILY, VARIANTS, small_cfg

DENSE, DEFORMABLE, ACROSS, SAMPLING_FIRST = LAYERS

#: Parameters, trained and all, of the official code with 91 classes (SPEC 1.21), and the GFLOPs of
#: the authors' table.
OFFICIAL = {
    "single_scale": (33_844_193, 34_066_593, 78),
    "single_scale_dc5": (33_844_193, 34_066_593, 128),
    "multi_scale": (39_847_265, 40_069_665, 173),
    "refine": (40_627_260, 40_849_660, 173),
    "two_stage": (40_959_129, 41_181_529, 173),
}
#: (height, width) of an image whose area is the mean of COCO's val2017 after the resize to 800 px:
#: 57 of its images have 800 x 1122 on average. The authors took the first 100.
MEAN_IMAGE = (800, 1120)


def official_cfg(variant):
    opts = ["MODEL.DETR.NUM_CLASSES", 91]
    return load_config(str(CONFIGS / VARIANTS[variant]), opts)


@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_of_the_paper(variant):
    """Parameters to the last; multiply-adds to 2 %, and two-stage, which it rounds, to 3 %."""
    cfg = official_cfg(variant)
    assert default_size(cfg) == MEAN_IMAGE
    *parts, whole = count(model_on_meta(cfg), MEAN_IMAGE)
    trained, parameters, gflops = OFFICIAL[variant]
    assert (whole.trained, whole.parameters) == (trained, parameters)
    tolerance = 0.03 if variant == "two_stage" else 0.02
    assert whole.macs / 1e9 == pytest.approx(gflops, rel=tolerance)
    by_name = {part.name: part for part in parts}
    for i in (1, 2, 3):  # parameters, trained, macs: nothing is in two parts or in none
        assert by_name["backbone"][i] + by_name["head"][i] == whole[i]
    stages = ("stem", "res2", "res3", "res4", "res5")
    assert sum(by_name[f"backbone.{s}"].macs for s in stages) == by_name["backbone"].macs


@pytest.mark.parametrize(
    "config, size, gmacs",
    [
        ("R_50_500ep", (800, 1066), 81.2),
        ("R_50_500ep", (800, 1333), 101.7),
        ("R_50_dc5_500ep", (800, 1066), 173.3),
        ("R_50_dc5_500ep", (800, 1333), 227.8),
    ],
)
def test_numbers_of_detr(config, size, gmacs):
    """Those that its authors' code was counted to have, to the last digit."""
    opts = ["MODEL.DETR.NUM_CLASSES", 91]
    model = model_on_meta(load_config(str(CONFIGS / f"detr/detr_{config}.yaml"), opts))
    whole = count(model, size)[-1]
    assert (whole.trained, whole.parameters) == (41_302_368, 41_524_768)
    assert whole.macs / 1e9 == pytest.approx(gmacs, abs=0.06)


def test_counted_again():
    """The same, of weights that learn as before."""
    model = model_on_meta(small_cfg())
    first = count(model, (96, 140))[-1]
    assert 0 < first.trained < first.parameters and count(model, (96, 140))[-1] == first


# DINO moves its references once more after the last layer, which a traced run leaves out.
@pytest.mark.parametrize("variant", [v for v in FAMILY if v != "dino"])
def test_the_counters_agree(variant):
    """fvcore's traces a run, PyTorch's is told of each operator; on "meta" and on the CPU."""
    cfg, size = small_cfg(config=FAMILY[variant]), (96, 140)
    network = Network(build_model(cfg))
    found = count_by_fvcore(network, network.image(size))
    products = ("conv", "linear", "ms_deform_attn", "scaled_dot_product_attention")
    *_, on_cpu = count(network.model, size)
    assert sum(found.get(name, 0) for name in products) == on_cpu.macs
    assert set(found) - set(products) == {
        *("batch_norm", "layer_norm", "upsample_nearest2d"),
        *(() if variant == "detr" else ("group_norm",)),
    }
    assert count(model_on_meta(cfg), size)[-1] == on_cpu


def test_a_convolution_by_hand():
    """The stem of a thin ResNet: 8 channels of 7 x 7 x 3 at half the size, in each row of it."""
    parts = {part.name: part for part in count(model_on_meta(small_cfg()), (96, 140))}
    assert parts["backbone.stem"][1:] == (8 * 147, 0, 8 * 147 * 48 * 70)
    assert "backbone.stem.conv1" not in parts  # as large as the stem


@pytest.mark.parametrize(
    "size, levels, tokens",
    [((640, 640), 3, 8400), ((800, 1066), 4, 17_821), ((800, 1333), 4, 22_223)],
)
def test_tokens_of_an_image(size, levels, tokens):
    """What the encoder gets, counted in the network itself."""
    cfg = small_cfg("MODEL.DETR.NUM_FEATURE_LEVELS", levels)
    network, seen = Network(model_on_meta(cfg)), []
    layer = network.model.head.transformer.encoder.layers[0]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    network(network.image(size))
    assert seen == [tokens]


def test_first_map_of_a_resnet():
    """640 px: 64 channels of 320 cells a side, where an article has 128."""
    network, seen = Network(model_on_meta(official_cfg("multi_scale"))), []
    for module in network.model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    maps = network.model.backbone(network.image((640, 640)))
    assert seen[0] == (1, 64, 320, 320)
    assert [maps[f"res{i}"].shape[1:] for i in (3, 4, 5)] == [
        *((512, 80, 80), (1024, 40, 40), (2048, 20, 20))
    ]


# One layer of attention.

ONE_LEVEL = Setting(n_levels=1)


@pytest.mark.parametrize("side, dense", [(20, 0.187), (28, 0.520), (40, 1.73), (80, 22.6)])
def test_dense_attention_by_hand(side, dense):
    """Four projections, and two products of S x S; 20 x 20 makes 400 tokens, not 800."""
    s, c = side * side, 256
    assert macs(DENSE, ONE_LEVEL, side) == 4 * s * c * c + 2 * s * s * c
    assert macs(DENSE, ONE_LEVEL, side) / 1e9 == pytest.approx(dense, rel=5e-3)


@pytest.mark.parametrize("side", [20, 40])
@pytest.mark.parametrize("layer, queries", [(DEFORMABLE, None), (ACROSS, 300)])
def test_deformable_attention_by_the_paper(layer, queries, side):
    """
    A.1: N_q C^2 + H W C^2 + 5 N_q K C + 3 N_q C M K. Of the 5, one is the weighting of a sample,
    which here is in the weights of its four cells.
    """
    s, c, m, k = side * side, 256, 8, 4
    q = queries or s
    expected = q * c * c + s * c * c + 4 * q * k * c + 3 * q * c * m * k
    assert macs(layer, ONE_LEVEL, side) == expected


def test_how_costs_grow():
    """
    Twice the side, four times the tokens, on a scale of logarithms: slope 2 of dense attention, 1
    of deformable. Across from queries it is 1 as well in the end, although the paper says that it
    does not depend on the image: that needs the other order.
    """

    def slope(layer, few, many):
        ratio = macs(layer, ONE_LEVEL, many) / macs(layer, ONE_LEVEL, few)
        return math.log(ratio) / math.log((many / few) ** 2)

    assert slope(DENSE, 160, 320) == pytest.approx(2, abs=0.02)
    assert slope(DENSE, 10, 20) < 1.3  # the projections are most of it there
    assert slope(DEFORMABLE, 10, 20) == slope(DEFORMABLE, 160, 320) == pytest.approx(1)
    assert slope(ACROSS, 160, 320) == pytest.approx(1, abs=0.02)
    assert slope(ACROSS, 10, 20) < 0.5
    assert slope(SAMPLING_FIRST, 10, 20) == slope(SAMPLING_FIRST, 160, 320) == 0
    # For few tokens the order of the paper's formula costs more: the minimum in it.
    assert macs(SAMPLING_FIRST, ONE_LEVEL, 10) > macs(ACROSS, ONE_LEVEL, 10)
    assert macs(SAMPLING_FIRST, ONE_LEVEL, 40) < macs(ACROSS, ONE_LEVEL, 40)


def test_attention_over_an_image_of_640_px():
    """Three levels, 8400 tokens: dense 38.3 G, deformable 1.8 G."""
    setting = Setting(n_levels=3)
    assert sum(h * w for h, w in pyramid(setting, 80)) == 8400
    assert macs(DENSE, setting, 80) / 1e9 == pytest.approx(38.3, abs=0.05)
    assert macs(DEFORMABLE, setting, 80) / 1e9 == pytest.approx(1.85, rel=0.02)


def test_dense_attention_counts_alike_on_cpus():
    """Forward and backward; its kernel there has a name of its own."""
    counted = {}
    for device in ("cpu", "meta"):
        attention = nn.MultiheadAttention(32, 4, batch_first=True, device=device)
        x = torch.rand(2, 24, 32, device=device, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            output, _ = attention(x, x, x, need_weights=False)
            forward = counter.get_total_flops()
            output.sum().backward()
        counted[device] = forward, counter.get_total_flops() - forward
    assert counted["cpu"][0] == counted["meta"][0]
    # The fused kernel computes the products again on its way back.
    products = 2 * 2 * 24 * 24 * 32
    assert counted["cpu"][1] - counted["meta"][1] == products


# The command.


def test_what_is_measured():
    text = analyze(small_cfg(), (64, 96), repeat=2)
    assert text.startswith("one image of 64x96 px\n")
    for words in ("fvcore counts", "s [", "median of 2 runs", f"torch {torch.__version__}", "MACs"):
        assert words in text
    assert "fvcore" not in analyze(small_cfg(), (64, 96), repeat=0)


@pytest.mark.parametrize("size, repeat", [((0, 64), 1), ((64, 64), -1)])
def test_what_cannot_be_measured(size, repeat):
    with pytest.raises(InputError, match="--image-size.*--repeat"):
        analyze(small_cfg(), size, repeat)


def test_curves():
    """Of the layers of a config; seconds of the smallest images only."""
    setting = setting_of(small_cfg())
    assert setting == (32, 4, 4, 4, 12)
    found = curves(setting, sides=(8, 16), timed=(8,), repeat=1)
    for curve in found.values():
        assert curve.tokens == [64 + 16 + 4 + 1, 256 + 64 + 16 + 4]
        assert len(curve.macs) == 2 and len(curve.seconds) == 1 and curve.seconds[0] > 0
    exponents = [found[name].exponent for name in LAYERS]
    assert exponents[1] == pytest.approx(1) and exponents[3] == 0 and 1 < exponents[0] < 2


def test_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(attention_cost, "SIDES", (4, 8))
    monkeypatch.setattr(attention_cost, "TIMED", (4,))
    picture = tmp_path / "attention.png"
    config = ["--config-file", "quick_start.yaml", "--repeat", "0", "--picture", str(picture)]
    cli.main(["analyze", *config, "MODEL.DETR.ENC_LAYERS", "1"])
    output = capsys.readouterr().out
    assert "encoder" in output and picture.stat().st_size > 20_000
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(small_cfg("MODEL.DETR.NUM_CLASSES", 7).dump())
    (run / "last_checkpoint").write_text("which is not read")
    cli.main(["analyze", str(run), "--repeat", "0", "--image-size", "64", "96"])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "class_embed" in line)
    assert row.split()[:3] == ["class_embed", str(7 * 33), str(7 * 33)]
    with pytest.raises(SystemExit, match="give --config-file"):
        cli.main(["analyze"])
    with pytest.raises(SystemExit, match="MODEL.DEVICE"):
        cli.main(["analyze", "--config-file", "quick_start.yaml", "MODEL.DEVICE", "xpu:9"])
    with pytest.raises(SystemExit, match="does not exist"):
        cli.main(["analyze", *config[:-1], str(tmp_path / "none" / "a.png")])


@pytest.mark.parametrize("system", family.SYSTEMS)
def test_relatives(system):
    """Learned queries that enter a layer are counted on; parameters are those of the model."""
    opts = ["MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 2]
    model = model_on_meta(load_config(str(CONFIGS / family.SYSTEMS[system]), opts))
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    *_, whole = count(model, (64, 96))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert whole.parameters == sum(p.numel() for p in model.parameters())
    assert whole.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert whole.trained < whole.parameters and whole.macs > 10**8
