"""Small DAT networks, and the stored outputs of the authors' code (tests/golden/README.md)."""

import json

import numpy as np
import torch

from detectron2_ddetr.backbones.dat import DATBackbone, DATClassifier
from detectron2_ddetr.checkpoint.dat import convert_dat

from .golden_cases import GOLDEN, load, seeded_parameter

KINDS = ("v1", "pp")

TINY = dict(
    dim_stem=8,
    dims=[8, 16, 32, 64],
    depths=[2, 2, 2, 1],
    stage_spec=["LS", "ND", "DL", "D"],
    heads=[2, 2, 4, 4],
    groups=[-1, 1, 2, 4],
    strides=[-1, 2, 1, 1],
    offset_range_factor=[-1, -1, 2, 2],
    use_pes=[False, True, True, True],
    use_dwc_mlps=[False, True, False, True],
    use_lpus=[False, True, False, True],
    img_size=64,
    window_sizes=[4, 4, 4, 4],
    nat_ksizes=[3, 3, 3, 3],
)


def tiny(cls=DATBackbone, **options):
    torch.manual_seed(0)
    return cls(**{**TINY, **options})


def probe(seed, index, like):
    return torch.from_numpy(seeded_parameter(f"probe.{index}", tuple(like.shape), seed))


def golden(kind, net, grid=None):
    """The stored case of a classifier ("") or backbone ("_detection"), and the network."""
    case = load(f"family/dat_{kind}")
    config = case["config"]
    options = dict(config["kwargs"])
    if net == "":
        model = DATClassifier(**options)
    else:
        model = DATBackbone(**{k: v for k, v in options.items() if k != "num_classes"}, grid=grid)
    shapes = json.loads((GOLDEN / "family" / f"state_dict_dat_{kind}{net}.json").read_text())
    weights = {
        key: torch.from_numpy(np.asarray(seeded_parameter(key, tuple(shape), config["seed"])))
        for key, shape in shapes.items()
    }
    model.load_state_dict(convert_dat(weights, model.state_dict()), strict=True)
    return case, model


def relative_error(found, expected):
    """Of the largest number; shapes must be equal."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()
