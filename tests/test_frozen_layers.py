"""Frozen layers that no weights filled stop a training at its first step."""

import copy

import pytest
import torch

from detectron2_ddetr.errors import InputError

from .test_building import batch
from .test_training import run, shapes  # noqa: F401
from .test_weights_everywhere import build, resnet  # noqa: F401


def test_our_trainer_leaves_no_checkpoint_of_them(shapes, tmp_path):  # noqa: F811
    """Or --resume would take random layers for filled ones."""
    log = run(shapes, tmp_path, opts=["MODEL.BACKBONE.FREEZE_AT", 2], expected=1)
    assert "backbone.stem.conv1" in log and "Traceback" not in log
    assert not list(tmp_path.glob("*.pth"))


def check_unfilled(model, first="backbone.stem.conv1"):
    with pytest.raises(InputError, match=f"first {first}.*WEIGHTS.*FREEZE_AT 0"):
        model.train()(batch())


def test_frozen_layers_that_nothing_filled():
    """The first step of a training stops; what does not train goes on."""
    model = build()
    model.eval()(batch())
    with torch.no_grad():
        model.train()(batch())
    check_unfilled(model)
    check_unfilled(copy.deepcopy(model))
    assert build("MODEL.BACKBONE.FREEZE_AT", 0).train()(batch())
    model = build("MODEL.BACKBONE.FREEZE_AT", 0)
    model.backbone.res4.requires_grad_(False)
    check_unfilled(model, "backbone.res4.0.")


def test_weights_for_the_head_alone_do_not_fill_them():
    model = build()
    state = {k: v for k, v in model.state_dict().items() if k.startswith("head.")}
    model.load_state_dict(state, strict=False)
    check_unfilled(model)


@pytest.mark.parametrize("part", ["", "backbone", "backbone.stem"])
def test_weights_may_be_loaded_by_hand(part):
    """Into the model or a part, before or after it was copied; one part does not fill another."""
    model = copy.deepcopy(build())
    target = model.get_submodule(part)
    target.load_state_dict(target.state_dict())
    if part == "backbone.stem":
        check_unfilled(model, "backbone.res2.0.")
        model.backbone.res2.load_state_dict(model.backbone.res2.state_dict())
    assert model.train()(batch())


def test_a_backbone_may_come_filled(resnet):  # noqa: F811
    """As one does that loads its weights while it is built: its norms show it."""
    from detectron2_ddetr import DeformableDETR

    names = ("head", "criterion", "in_features", "num_detections")
    for filled in (False, True):
        source = build()
        if filled:
            for module in source.backbone.modules():
                if hasattr(module, "running_mean"):
                    module.weight.uniform_(0.5, 1.5)
        parts = {name: getattr(source, name) for name in names}
        for layer in source.modules():
            layer.__dict__.pop("weight_was_loaded", None)
        model = DeformableDETR(
            backbone=source.backbone, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, **parts
        )
        if filled:
            assert model.train()(batch())
        else:
            check_unfilled(model)
