"""Every config key is read, and each of the model's changes what is built or computed."""

import ast

import pytest
import torch
from torch import nn

from detectron2_ddetr.toolbox import build_model

from .conftest import small_cfg
from .test_building import batch  # registers what CHANGES names, too
from .test_config import NODE, flatten
from .test_import_rules import SOURCES


def added_keys():
    from detectron2_ddetr import add_deformable_detr_config
    from detectron2_ddetr.toolbox import get_cfg

    before, cfg = flatten(get_cfg()), get_cfg()
    add_deformable_detr_config(cfg)
    return sorted(set(flatten(cfg)) - set(before))


def test_every_config_key_is_read():
    """PEERS 7.8, 7.19: outside config.py, as an attribute of a config node."""
    read = {
        node.attr
        for path in SOURCES
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert [key for key in added_keys() if key.split(".")[-1] not in read] == []


def fingerprint(*opts):
    """Shapes of the weights, kinds of the parts, losses, gradient and matching costs of a step."""
    torch.manual_seed(0)
    model = build_model(small_cfg(*opts, "MODEL.BACKBONE.FREEZE_AT", 0))
    for parameter in model.head.parameters():  # zeros would hide what they multiply
        nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    losses = model(batch())
    sum(losses.values()).backward()
    losses = {k: round(v.item(), 4) for k, v in losses.items()}
    # Of a box head, since a gradient is all that looking forward twice changes.
    gradient = round(model.head.bbox_embed[0].layers[-1].bias.grad.norm().item(), 3)
    logits, boxes = torch.zeros(1, 3), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.5, 0.2, 0.3]])}
    cost = model.criterion.matcher.cost(logits, boxes, target).item()
    kinds = type(model.head.transformer).__name__, type(model.criterion).__name__
    return (
        {k: tuple(v.shape) for k, v in model.state_dict().items()},
        kinds,
        losses,
        (cost, gradient),
    )


CHANGES = {
    # fmt: off
    "TRANSFORMER": "build_other_transformer", "CRITERION": "OtherCriterion",
    "IN_FEATURES": ["res4", "res5"], "NUM_FEATURE_LEVELS": 5, "SIZE_DIVISIBILITY": 48,
    "NUM_CLASSES": 4, "NUM_QUERIES": 11,
    "HIDDEN_DIM": 64, "NHEADS": 2, "ENC_LAYERS": 1, "DEC_LAYERS": 1, "DIM_FEEDFORWARD": 48,
    "DROPOUT": 0.5, "ENC_N_POINTS": 3, "DEC_N_POINTS": 3, "WITH_BOX_REFINE": True,
    "TWO_STAGE": True, "FOCAL_ALPHA": 0.4, "NO_OBJECT_WEIGHT": 0.5,
    "LOSS_CE_WEIGHT": 3.0, "LOSS_BBOX_WEIGHT": 3.0,
    "LOSS_GIOU_WEIGHT": 3.0, "COST_CLASS": 3.0, "COST_BBOX": 3.0, "COST_GIOU": 3.0,
    "MIXED_SELECTION": True, "LOOK_FORWARD_TWICE": True,
    "ONE_TO_MANY.NUM_QUERIES": 7, "ONE_TO_MANY.REPEATS": 2, "ONE_TO_MANY.LOSS_WEIGHT": 0.5,
    "DENOISING.ENABLED": True, "DENOISING.NUM_QUERIES": 6, "DENOISING.NUM_GROUPS": 2,
    "DENOISING.LABEL_NOISE": 1.0, "DENOISING.BOX_NOISE": 0.4, "DENOISING.NEGATIVES": False,
    "DENOISING.CORNER_NOISE": False, "DENOISING.INDICATOR": True,
    # fmt: on
}
REFINED = [NODE + "WITH_BOX_REFINE", True]
TWO_STAGE = [*REFINED, NODE + "TWO_STAGE", True]
DENOISED = [*TWO_STAGE, NODE + "MIXED_SELECTION", True, NODE + "DENOISING.ENABLED", True]
OF_DETR = ["MODEL.META_ARCHITECTURE", "DETR", NODE + "TRANSFORMER", "build_dense_transformer",
           NODE + "CRITERION", "build_softmax_criterion", NODE + "NUM_FEATURE_LEVELS", 1,
           NODE + "IN_FEATURES", ["res5"]]  # fmt: skip
#: What a key needs beside it.
NEEDED = {
    "TWO_STAGE": REFINED,
    "MIXED_SELECTION": TWO_STAGE,
    "LOOK_FORWARD_TWICE": REFINED,
    "NO_OBJECT_WEIGHT": OF_DETR,
    "ONE_TO_MANY.REPEATS": [NODE + "ONE_TO_MANY.NUM_QUERIES", 7],
    "ONE_TO_MANY.LOSS_WEIGHT": [NODE + "ONE_TO_MANY.NUM_QUERIES", 7],
    "DENOISING.ENABLED": TWO_STAGE,
    **{key: DENOISED for key in CHANGES if key.startswith("DENOISING.") and "ENA" not in key},
}
NEEDED["DENOISING.CORNER_NOISE"] = [*DENOISED, NODE + "DENOISING.NEGATIVES", False]


def test_every_model_key_is_tried():
    """But for what must not change any number, as test_activation_checkpointing.py shows."""
    keys = {key.removeprefix(NODE) for key in added_keys() if key.startswith(NODE)}
    assert {key for key in keys if not key.startswith("ACTIVATION_CHECKPOINTING.")} == set(CHANGES)


@pytest.fixture(scope="module")
def default_fingerprint():
    return fingerprint()


@pytest.mark.parametrize("key", CHANGES)
def test_changing_a_key_changes_the_model(key, default_fingerprint):
    """PEERS 7.19."""
    needed = NEEDED.get(key, [])
    before = fingerprint(*needed) if needed else default_fingerprint
    assert before == (fingerprint(*needed) if key == "DROPOUT" else before)  # reproducible
    assert fingerprint(*needed, NODE + key, CHANGES[key]) != before


@pytest.mark.parametrize("term, key", [("ce", "CE"), ("bbox", "BBOX"), ("giou", "GIOU")])
def test_loss_weights_cover_every_layer(term, key):
    """PEERS 7.6: also the auxiliary layers and the encoder, and no other term."""
    opts = [NODE + "WITH_BOX_REFINE", True, NODE + "TWO_STAGE", True]
    default = {"ce": 2.0, "bbox": 5.0, "giou": 2.0}[term]
    _, _, before, _ = fingerprint(*opts)
    _, _, after, _ = fingerprint(*opts, NODE + f"LOSS_{key}_WEIGHT", 3 * default)
    assert {f"loss_{term}{suffix}" for suffix in ("", "_0", "_enc")} < set(before)
    for name, value in before.items():
        factor = 3 if name.startswith(f"loss_{term}") else 1
        assert after[name] == pytest.approx(factor * value, rel=1e-3, abs=3e-4), name
