"""Deformable convolutions in the ResNet of a detector: training, precision, costs, and weights."""

import logging

import pytest
import torch

from detectron2_ddetr import Trainer, load_config
from detectron2_ddetr.analysis.counts import Network, count, count_by_fvcore, model_on_meta
from detectron2_ddetr.backbones.deformable_resnet import DeformableBottleneck
from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.toolbox import build_backbone, build_model

from .conftest import CONFIGS, small_cfg
from .test_backbone import FULL, torchvision_resnet
from .test_deformable_resnet import ON, options, random_offsets
from .test_gradients import BATCHES, without_gradient

DCN = "deformable_detr/deformable_detr_R_50_dcnv2_50ep.yaml"


def test_config():
    cfg = load_config(str(CONFIGS / DCN), ["MODEL.DETR.NUM_CLASSES", 91])
    model = model_on_meta(cfg)
    assert sum(p.numel() for p in model.parameters()) == 40_069_665 + 871_263
    blocks = [m for m in model.modules() if isinstance(m, DeformableBottleneck)]
    assert len(blocks) == 13 and {b.conv2_offset.out_channels for b in blocks} == {27}


def test_every_parameter_is_trained():
    model = build_model(small_cfg("MODEL.BACKBONE.FREEZE_AT", 0, config=DCN)).train()
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []


def test_mixed_precision():
    """The network in bfloat16, the deformable convolutions in float32; close to all in float32."""
    torch.manual_seed(0)
    model = build_model(small_cfg("MODEL.BACKBONE.FREEZE_AT", 0, config=DCN)).eval()
    random_offsets(model, std=0.02)
    batch, maps = BATCHES["boxes"](), []
    model.backbone.register_forward_hook(lambda *x: maps.append(x[-1]["res5"]))
    with torch.no_grad():
        model(batch)
        model.precision = torch.bfloat16
        model(batch)
    assert maps[1].dtype == torch.bfloat16
    difference = (maps[1].float() - maps[0]).norm() / maps[0].norm()
    assert 0 < difference < 0.15  # of noise, whose neighbouring cells have nothing in common
    losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_activation_checkpointing():
    """The blocks are computed again, with equal gradients to the bit."""
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        opts = [
            "MODEL.BACKBONE.FREEZE_AT",
            0,
            "MODEL.DETR.ACTIVATION_CHECKPOINTING.BACKBONE",
            again,
        ]
        model = build_model(small_cfg(*opts, config=DCN)).train()
        random_offsets(model, std=0.02)
        runs = []
        model.backbone.res4[2].conv2.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        sum(model(BATCHES["boxes"]()).values()).backward()
        assert len(runs) == 1 + again
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("version", [1, 2])
def test_the_counters_agree(version):
    """A tap reads four cells of each channel, then comes the convolution; on "meta" and traced."""
    cfg, size = small_cfg(*options(version)), (96, 140)
    network = Network(build_model(cfg))
    found = count_by_fvcore(network, network.image(size))
    plain = Network(build_model(small_cfg()))
    before = count_by_fvcore(plain, plain.image(size))
    expected, moved, offsets = 0, 0, 0
    for stage, width, blocks in ((3, 16, 4), (4, 32, 6), (5, 64, 3)):
        positions = -(-96 // 2**stage) * -(-140 // 2**stage)
        moved += blocks * positions * 9 * width * width
        expected += blocks * positions * 9 * width * 4
        offsets += blocks * positions * 9 * width * (18 if version == 1 else 27)
    assert found["deform_conv2d"] == expected + moved
    assert found["conv"] == before["conv"] - moved + offsets
    products = ("conv", "linear", "ms_deform_attn", "scaled_dot_product_attention")
    total = sum(found[name] for name in (*products, "deform_conv2d"))
    assert total == count(model_on_meta(cfg), size)[-1].macs == count(network.model, size)[-1].macs


# Weights.


def test_a_plain_resnet_is_a_start(tmp_path, caplog):
    """One of torchvision: all that is missing are offsets, they are zero, and it is said."""
    reference = torchvision_resnet(dc5=False)
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    model = build_model(small_cfg(*FULL, config=DCN))
    random_offsets(model)
    with caplog.at_level(logging.INFO, "detectron2_ddetr"):
        Checkpointer(model, class_names=["a", "b", "c"]).load(str(tmp_path / "resnet50.pth"), [])
    assert "26 tensors of conv2_offset" in caplog.text and "begin at zero" in caplog.text
    state = model.state_dict()
    assert torch.equal(state["backbone.res4.1.conv2.weight"], reference.layer3[1].conv2.weight)
    offsets = [value for name, value in state.items() if ".conv2_offset." in name]
    assert len(offsets) == 26 and not any(value.any() for value in offsets)


def test_a_whole_detector_without_offsets_is_not_evaluated():
    """It would be another one, of half the convolutions."""
    plain, model = build_model(small_cfg()), build_model(small_cfg(config=DCN))
    with pytest.raises(RuntimeError, match="Missing key.*conv2_offset"):
        model.load_state_dict(plain.state_dict())
    model.load_state_dict(build_model(small_cfg(config=DCN)).state_dict())


def test_offsets_of_a_file_stay():
    """A backbone with offsets of its own fills them."""
    torch.manual_seed(0)
    backbone, model = build_backbone(small_cfg(*ON)), build_model(small_cfg(*ON))
    random_offsets(backbone)
    model.load_state_dict(backbone.state_dict(), strict=False)
    found = model.backbone.res3[0].conv2_offset.weight
    assert torch.equal(found, backbone.res3[0].conv2_offset.weight) and found.any()


def test_learning_rate_of_offsets():
    """That of the backbone, as in detectron2."""
    cfg = small_cfg("MODEL.BACKBONE.FREEZE_AT", 0, config=DCN)
    model = build_model(cfg)
    rates = {
        id(p): g["lr"]
        for g in Trainer.build_optimizer(cfg, model).param_groups
        for p in g["params"]
    }
    offset = model.backbone.res3[0].conv2_offset.weight
    assert rates[id(offset)] == pytest.approx(0.1 * cfg.SOLVER.BASE_LR)
