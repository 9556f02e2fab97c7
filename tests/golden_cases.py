"""Readers of the stored outputs of the official code (tests/golden/README.md)."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from .conftest import CONFIGS, VARIANTS

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from seeded import seeded_parameter  # noqa: E402


def load(name):
    """The arrays of one case as tensors, its json strings as objects."""
    case = {}
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        for key in arrays.files:
            array = arrays[key]
            is_json = array.dtype.kind == "U"
            case[key] = json.loads(str(array)) if is_json else torch.from_numpy(array)
    return case


def targets(case):
    n = sum(key.startswith("labels_") for key in case)
    return [{"labels": case[f"labels_{i}"], "boxes": case[f"boxes_{i}"]} for i in range(n)]


def official_state_dict(variant, seed, scale_rules=()):
    """The seeded weights of the official model, copies included."""
    shapes = json.loads((GOLDEN / f"state_dict_{variant}.json").read_text())
    state = {}
    for key, shape in shapes.items():
        name = key.removeprefix("transformer.decoder.") if "_embed." in key else key
        state[key] = torch.from_numpy(np.asarray(seeded_parameter(name, tuple(shape), seed)))
        for part, factor in scale_rules:
            if part in key:
                state[key] = state[key] * np.float32(factor)
    return state


def config(variant, case):
    """Through the shipped config of the variant, with the sizes of the case."""
    from detectron2_ddetr import add_deformable_detr_config
    from detectron2_ddetr.toolbox import get_cfg

    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / VARIANTS[variant]))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    node, sizes = cfg.MODEL.DETR, case["config"]
    for key in ("enc_layers", "dec_layers", "num_queries", "dropout", "num_classes"):
        node[key.upper()] = sizes[key]
    assert node.WITH_BOX_REFINE == sizes["with_box_refine"]
    assert node.TWO_STAGE == sizes["two_stage"]
    assert node.NUM_FEATURE_LEVELS == sizes["num_feature_levels"]
    return cfg
