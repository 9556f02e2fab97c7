"""Readers of the stored outputs of the authors' codes of the family (tests/golden/family)."""

import json
import re

import numpy as np
import torch

from detectron2_ddetr import convert_official_state_dict, load_config
from detectron2_ddetr.checkpoint.projects import recognised
from detectron2_ddetr.modeling import Draws
from detectron2_ddetr.toolbox import ImageList, build_model

from . import golden_cases as golden
from .conftest import CONFIGS
from .golden_cases import seeded_parameter

FAMILY = golden.GOLDEN / "family"

#: The shipped config of each system.
SYSTEMS = {
    "ddetr_tricks": "h_deformable_detr/deformable_detr_R_50_two_stage_tricks_12ep.yaml",
    "hdetr": "h_deformable_detr/h_deformable_detr_R_50_12ep.yaml",
    "dab_deformable": "dab_deformable_detr/dab_deformable_detr_R_50_50ep.yaml",
    "dn_dab_deformable": "dn_deformable_detr/dn_deformable_detr_R_50_50ep.yaml",
    "dino": "dino/dino_4scale_R_50_12ep.yaml",
}
#: The same of DETR, whose cases hold other things.
DETR = {
    "detr": "detr/detr_R_50_300ep.yaml",
    "detr_dc5": "detr/detr_R_50_dc5_500ep.yaml",
}
#: Those of the authors' configs that the published config has otherwise: the cases have their way.
_OTHERWISE = {
    "dino": ["MODEL.DETR.DENOISING.BOX_NOISE", 0.4],
    **dict.fromkeys(DETR, ["MODEL.DETR.DROPOUT", 0.0]),
}


def load(name):
    return golden.load(f"family/{name}")


def config(system, case):
    """The shipped config of the system with the sizes of the case."""
    sizes = case["config"]
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""] + _OTHERWISE.get(system, [])
    for key in ("enc_layers", "dec_layers", "num_classes"):
        opts += [f"MODEL.DETR.{key.upper()}", sizes[key]]
    opts += ["MODEL.DETR.NUM_QUERIES", sizes.get("num_queries", sizes.get("num_queries_one2one"))]
    if sizes.get("num_queries_one2many"):
        opts += ["MODEL.DETR.ONE_TO_MANY.NUM_QUERIES", sizes["num_queries_one2many"]]
        opts += ["MODEL.DETR.ONE_TO_MANY.REPEATS", sizes["k_one2many"]]
    cfg = load_config(str(CONFIGS / {**SYSTEMS, **DETR}[system]), opts)
    node = cfg.MODEL.DETR
    assert node.DIM_FEEDFORWARD == sizes["dim_feedforward"]
    assert node.DROPOUT == sizes["dropout"]
    for key in ("mixed_selection", "look_forward_twice"):
        assert getattr(node, key.upper()) == sizes.get(key, system == "dino")
    return cfg


def shapes(system):
    """Of every tensor of the authors' model, by its name; and which are copies of which."""
    return json.loads((FAMILY / f"state_dict_{system}.json").read_text())


def names_here(system):
    """Official names of tensors -> names here."""
    official = {key: key for key in shapes(system) if key != "__tied__"}
    project, _ = recognised(official)
    prepared = project.prepare(official)
    return {prepared[key]: name for key, name, _ in project.plan(prepared) if name}


def official_state_dict(system, case):
    """The seeded weights of the authors' model under their names, copies included."""
    of_tensors = shapes(system)
    tied = of_tensors.pop("__tied__", {})
    state = {}
    for key, shape in of_tensors.items():
        if key.endswith(("query_embed.weight", "tgt_embed.weight", "refpoint_embed.weight")):
            # The number of queries is the only size in which cases of a system differ.
            extra = case["config"].get("num_queries_one2many", 0)
            shape = [case["pred_logits"].shape[1] + extra, *shape[1:]]
        array = seeded_parameter(tied.get(key, key), tuple(shape), case["config"]["seed"])
        for part, factor in case["config"].get("scale_rules", []):
            array = array * np.float32(factor if part in key else 1)
        state[key] = torch.from_numpy(np.asarray(array))
    return state


def model(system, case):
    built = build_model(config(system, case))
    weights = convert_official_state_dict(official_state_dict(system, case))
    built.load_state_dict(weights, strict=True)
    return built


def images(case):
    n = sum(re.fullmatch(r"image_\d+", key) is not None for key in case)
    return ImageList.from_tensors([case[f"image_{i}"] for i in range(n)])


class Recorded(Draws):
    """The random numbers of the authors' run, in their order; the same again for each batch."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.next = numbers, 0

    def uniform(self, shape, device):
        numbers = self.numbers[self.next % len(self.numbers)]
        self.next += 1
        assert numbers.shape == tuple(shape) and numbers.is_floating_point()
        return numbers

    def integers(self, high, shape, device):
        numbers = self.numbers[self.next % len(self.numbers)].long()
        self.next += 1
        assert numbers.shape == tuple(shape) and ((0 <= numbers) & (numbers < high)).all()
        return numbers


def recorded(case, prefix="rand_"):
    """In the order of their numbers: `rand_0`, `rand_1_label_new`, ..."""
    found = {}
    for key, value in case.items():
        if match := re.match(rf"{prefix}(\d+)(_|$)", key):
            found[int(match[1])] = value
    return Recorded([found[i] for i in sorted(found)])


def loss_name(official):
    """The name here of a loss: group, then layer."""
    name = official.removeprefix("tgt_").replace("_interm", "_enc")
    if official.startswith("tgt_"):
        name = re.sub(r"(_\d+)?$", r"_dn\1", name, count=1)
    return re.sub(r"(_\d+)_one2many$", r"_one2many\1", name)
