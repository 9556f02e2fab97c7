"""Every parameter that is trained gets a gradient: processes that train together wait for each."""

import logging

import pytest
import torch
from torch import nn

from detectron2_ddetr.checkpoint.frozen import check_frozen_layers
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import TOOLBOX, build_model

from .conftest import CONFIGS, small_cfg
from .test_meta_arch import MEAN, STD, FixedHead, TinyBackbone, sample
from .test_training import run, shapes  # noqa: F401  (a fixture)

NODE = "MODEL.DETR."
SHIPPED = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
BATCHES = {
    "boxes": lambda: [sample(96, 128), sample(70, 90, [(5.0, 6.0, 40.0, 50.0)] * 2)],
    "one without": lambda: [sample(96, 128), sample(70, 90, [])],
    "none": lambda: [sample(96, 128, []), sample(70, 90, [])],
}


def small(*opts, config="deformable_detr/deformable_detr_R_50_50ep.yaml"):
    torch.manual_seed(0)
    return build_model(
        small_cfg(NODE + "HIDDEN_DIM", 64, "MODEL.BACKBONE.FREEZE_AT", 0, *opts, config=config)
    ).train()


def without_gradient(model, batch):
    """Names of the parameters that training would wait for in vain."""
    model.zero_grad()
    sum(model(batch).values()).backward()
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("freeze_at", [0, 2])
@pytest.mark.parametrize("config", SHIPPED)
def test_shipped_configs(config, freeze_at):
    """Whether images have boxes or not; what is frozen is what the config says."""
    model = small("MODEL.BACKBONE.FREEZE_AT", freeze_at, config=config)
    if freeze_at:
        for module in model.modules():
            module.weight_was_loaded = True
    for name, batch in BATCHES.items():
        assert without_gradient(model, batch()) == [], name
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    first = ("stem.", "res2.", "stride2.", "stride4.", "patch_proj.", "stages.0.")
    assert all(n.removeprefix("backbone.").startswith(first) for n in frozen)
    assert bool(frozen) == bool(freeze_at)


@pytest.mark.parametrize("key, value", [("ENC_LAYERS", 0), ("DEC_LAYERS", 1)])
def test_few_layers(key, value):
    """No encoder, or no earlier layer of the decoder."""
    assert without_gradient(small(NODE + key, value), BATCHES["boxes"]()) == []


def unread(model, *prefixes):
    """Exactly the backbone's parameters with these names are frozen."""
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [
        n
        for n, _ in model.named_parameters()
        if n.startswith(tuple(f"backbone.{p}" for p in prefixes))
    ]
    assert frozen
    return frozen


def test_a_model_built_without_gradients_trains_all_the_same(tried_once):
    tried_once.clear()
    with torch.no_grad():
        model = small()
    tried_once.clear()
    assert all(p.requires_grad for p in model.parameters())


def test_stage_that_is_not_read(caplog, tried_once):
    """Nothing waits for it, it stays as it is, and it is not taken for a mistake."""
    tried_once.clear()
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        model = small(NODE + "IN_FEATURES", ["res3", "res4"], "MODEL.RESNETS.NORM", "BN")
    names = unread(model, "res5.")
    assert (
        f"{len(names)} parameters of the backbone are frozen, the first {names[0]}" in caplog.text
    )
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and not p.is_meta for p in model.parameters())
    fresh = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert fresh and all(m.num_batches_tracked == 0 for m in fresh)
    assert without_gradient(model, BATCHES["boxes"]()) == []
    check_frozen_layers(model)
    model.backbone.res4.requires_grad_(False)
    with pytest.raises(InputError, match="backbone.res4.0"):
        check_frozen_layers(model)


def test_everything_is_read():
    """Without such a stage nothing is frozen."""
    assert all(p.requires_grad for p in small().parameters())


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="the embedded host has ResNets only")
@pytest.mark.parametrize(
    ("name", "in_features", "prefixes"),
    [
        (
            "build_resnet_fpn_backbone",
            ["res2", "res3", "res4", "res5"],
            ("fpn_lateral2", "fpn_output2"),
        ),
        ("build_retinanet_resnet_fpn_backbone", ["res3", "res4", "res5"], ("top_block",)),
    ],
)
def test_feature_pyramids(name, in_features, prefixes):
    """detectron2's, where p3 to p5 are read: levels below and above are not."""
    cfg = ["MODEL.BACKBONE.NAME", name, NODE + "IN_FEATURES", ["p3", "p4", "p5"]]
    cfg += ["MODEL.FPN.IN_FEATURES", in_features, "MODEL.RESNETS.OUT_FEATURES", in_features]
    model = small(*cfg, "MODEL.FPN.OUT_CHANNELS", 24)
    unread(model, *prefixes)
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []


class Reads(TinyBackbone):
    """Looks at a number, which on "meta" there is not; "coarse" alone is read."""

    def forward(self, x):
        assert x.sum().item() is not None
        return super().forward(x)


def test_backbone_that_cannot_be_tried(caplog):
    """It is trained as it is, and the log says why."""
    from detectron2_ddetr import DeformableDETR
    from detectron2_ddetr.modeling import HungarianMatcher, SetCriterion

    logits, boxes = [[2.0, -3.0]], [[0.25, 0.5, 0.5, 0.2]]
    head, criterion = FixedHead(logits, boxes), SetCriterion(HungarianMatcher())
    arguments = dict(head=head, criterion=criterion, in_features=["fine"])
    for cls, trained in ((Reads, 4), (TinyBackbone, 2)):
        caplog.clear()
        model = DeformableDETR(backbone=cls(), pixel_mean=MEAN, pixel_std=STD, **arguments)
        assert sum(p.requires_grad for p in model.backbone.parameters()) == trained
        assert ("does not run on the device" in caplog.text) == (cls is Reads)


def test_two_processes(shapes, tmp_path):  # noqa: F811
    """They end as one process does, where before they waited for the last stage."""
    opts = [NODE + "IN_FEATURES", "('res3','res4')", "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 0]
    run(shapes, tmp_path, "--num-gpus", "2", "--dist-url", "auto", opts=opts)
    assert (tmp_path / "model_final.pth").exists()
