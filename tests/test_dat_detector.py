"""DAT as the backbone of a detector: keys, weights of its authors, freezing, export, precision."""

import copy

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.analysis.counts import Network, count, count_by_fvcore, model_on_meta
from detectron2_ddetr.backbones import dat
from detectron2_ddetr.backbones.dat import DATBackbone, DATClassifier
from detectron2_ddetr.checkpoint.dat import convert_dat
from detectron2_ddetr.checkpoint.reading import read_state_dict
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.modeling.activation_checkpointing import blocks_of, checkpoint_activations
from detectron2_ddetr.modeling.bilinear import GATHER_DECOMPOSITIONS
from detectron2_ddetr.toolbox import build_model

from .conftest import small_cfg
from .dat_cases import TINY, tiny
from .test_gradients import BATCHES, without_gradient

MAPS = ["stride8", "stride16", "stride32"]


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    """Under the name of a published one."""
    monkeypatch.setitem(dat.DAT_SIZES, "DAT-T", TINY | {"drop_path_rate": 0.5})


def cfg(*opts):
    return small_cfg(
        "MODEL.BACKBONE.NAME", "build_dat_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
        "MODEL.DETR.IN_FEATURES", MAPS, *opts,
    )  # fmt: skip


def test_detector_trains_and_says_its_shapes():
    model = build_model(cfg()).train()
    shapes = model.backbone.output_shape()
    maps = model.backbone(torch.zeros(2, 3, 64, 96))
    assert list(shapes) == list(maps) == MAPS and model.backbone.size_divisibility == 32
    for key, x in maps.items():
        stride = shapes[key].stride
        assert x.shape == (2, shapes[key].channels, 64 // stride, 96 // stride)
        assert key == f"stride{stride}" and x.requires_grad
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []


def test_keys():
    """NAME, OUT_FEATURES and DROP_PATH_RATE."""
    opts = ["MODEL.DAT.OUT_FEATURES", ["stride4", "stride16"], "MODEL.DAT.DROP_PATH_RATE", 0.3]
    backbone = build_model(cfg(*opts, "MODEL.DETR.IN_FEATURES", ["stride16"])).backbone
    assert list(backbone.output_shape()) == ["stride4", "stride16"]
    rates = [drop.p for stage in backbone.stages for drop in stage.drop_path]
    assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])
    for key, value, says in (
        ("NAME", "DAT-X", "NAME must be one of DAT-T, DAT-S.*got 'DAT-X'"),
        ("OUT_FEATURES", ["res3"], "OUT_FEATURES must name some of stride4.*res3"),
    ):
        with pytest.raises(InputError, match=says):
            build_model(cfg(f"MODEL.DAT.{key}", value))


def test_unread_stage_is_frozen():
    model = build_model(cfg("MODEL.DETR.IN_FEATURES", MAPS[:2]))
    assert {n for n, p in model.backbone.named_parameters() if not p.requires_grad} == {
        n
        for n, _ in model.backbone.named_parameters()
        if n.startswith(("stages.3.", "down_projs.2.", "norms.3."))
    }


@pytest.mark.parametrize(
    "freeze_at, frozen",
    [(0, ()), (1, ("patch_proj",)), (3, ("patch_proj", "stages.0", "down_projs.0", "stages.1"))],
)
def test_freezing(freeze_at, frozen):
    backbone = build_model(cfg("MODEL.BACKBONE.FREEZE_AT", freeze_at)).backbone
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(f"{f}." for f in frozen))


def published():
    """A file of the authors: a classifier with the constants that theirs keep."""
    model = tiny(DATClassifier, num_classes=10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights = dict(model.state_dict())
    weights["stages.0.attns.0.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    weights["stages.0.attns.1.attn_mask"] = torch.zeros(16, 16, 16)
    return model, weights


@torch.no_grad()
def test_weights_of_the_authors(tmp_path):
    """All of them but the classifier; norms of the outputs begin as they are made."""
    classifier, weights = published()
    torch.save({"model": weights}, tmp_path / "dat.pth")
    model = build_model(cfg())
    torch.nn.init.zeros_(model.backbone.norms[2].norm.weight)
    Checkpointer(model, class_names=["a", "b", "c"]).load(str(tmp_path / "dat.pth"), [])
    image = torch.rand(1, 3, 64, 96)
    maps = classifier.eval().stage_maps(image)[1:]
    for found, x in zip(model.backbone.eval()(image).values(), maps):
        expected = torch.nn.functional.layer_norm(x, x.shape[3:]).permute(0, 3, 1, 2)
        assert_close(found, expected)
    read = read_state_dict(weights, model, "dat.pth")
    assert read.family == "a DAT trained on ImageNet" and read.part == "backbone."


@torch.no_grad()
def test_weights_for_images_of_another_size():
    """Tables of biases are stretched; ends and means stay about where they are."""
    _, weights = published()
    size = {"img_size": 96, "window_sizes": [6] * 4}
    other = DATClassifier(**{**TINY, **size}, num_classes=10)
    own = {k: torch.ones_like(v) if k.endswith("table") else v for k, v in weights.items()}
    other.load_state_dict(convert_dat(own, other.state_dict()), strict=True)
    for name, x in other.state_dict().items():
        if name.endswith("table"):
            assert_close(x, torch.ones_like(x))
    ramp = torch.arange(15.0).expand(2, 15, 15)  # of the map of 8x8 cells in stage 1
    own["stages.1.attns.1.rpe_table"] = ramp
    table = convert_dat(own, other.state_dict())["stages.1.attns.1.rpe_table"]
    assert table.shape == (2, 23, 23) and (table[..., 1:] > table[..., :-1]).all()
    assert_close(table, table[:, :1].expand_as(table))


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16(train):
    """Finite, and near the maps of float32."""
    backbone = tiny().train(train)
    image = torch.rand(1, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(image)
    for x, expected in zip(maps.values(), backbone(image).values()):
        assert (x.float() - expected).abs().mean() < 0.05
    sum(x.float().square().mean() for x in maps.values()).backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_weights_of_16_bits(dtype):
    """As in a file that `ddetr export --precision` writes."""
    backbone, image = tiny().eval(), torch.rand(1, 3, 64, 96)
    expected = backbone(image)
    for name, x in backbone.to(dtype)(image.to(dtype)).items():
        assert x.dtype == dtype and (x.float() - expected[name]).abs().mean() < 0.05


def test_activation_checkpointing():
    """The same maps and gradients, with stochastic depth too."""
    plain = tiny(drop_path_rate=0.5).train()
    other = copy.deepcopy(plain)
    checkpoint_activations(blocks_of(other))
    results = []
    for backbone in (plain, other):
        torch.manual_seed(3)
        maps = backbone(torch.ones(2, 3, 64, 64))
        sum(x.square().mean() for x in maps.values()).backward()
        results.append([*maps.values(), *(p.grad for p in backbone.parameters())])
    assert_close(*results, rtol=0, atol=0)


@torch.no_grad()
def test_export():
    """torch.export, of a fixed size; for ONNX without what it would make a loop of."""
    backbone = tiny().eval()
    image = torch.rand(1, 3, 64, 96)
    program = torch.export.export(backbone, (image,))
    gathered = program.run_decompositions(GATHER_DECOMPOSITIONS)
    called = [{str(node.target) for node in p.graph.nodes} for p in (program, gathered)]
    bags = [any("embedding_bag" in name for name in names) for names in called]
    assert bags == [True, False]
    for each in (program, gathered):
        assert_close(dict(each.module()(image)), backbone(image))


def test_the_counters_agree():
    """The biases of deformed keys are read, whichever way they are: no products of the network."""
    network, size = Network(build_model(cfg())), (96, 140)
    found = count_by_fvcore(network, network.image(size))
    products = ("conv", "linear", "matmul", "ms_deform_attn", "scaled_dot_product_attention")
    expected = sum(found[name] for name in products)
    assert count(model_on_meta(cfg()), size)[-1].macs == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_stochastic_depth_only_in_training():
    backbone, image = DATBackbone(**TINY, drop_path_rate=0.9), torch.rand(1, 3, 64, 64)
    expected = backbone.eval()(image)
    assert_close(backbone(image), expected, rtol=0, atol=0)
    assert not torch.equal(backbone.train()(image)["stride32"], expected["stride32"])
