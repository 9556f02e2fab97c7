"""Checkpoints of other projects: computing here what they compute there, and back."""

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import load_config
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.head_shapes import check_head
from detectron2_ddetr.checkpoint.projects import HERE, OTHERS, PROJECTS, recognised
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.model_zoo import get_config_file
from detectron2_ddetr.toolbox import build_model

from . import family_cases as family
from . import golden_cases as golden
from . import peer_cases as peers
from .conftest import VARIANTS
from .project_cases import keys, official, random, same

#: {name of a list of keys: its project}
KEYS = {
    "official": "official",
    "transformers": "transformers",
    "transformers_memory": "transformers",
    "detrex": "detrex",
}


ALL_KEYS = [(name, variant) for name in KEYS for variant in keys(name)]


@pytest.fixture(scope="module", params=peers.CASES, ids="-".join)
def case(request, tmp_path_factory):
    project, variant = request.param
    stored = golden.load(f"{project}_{variant}")
    state = peers.seeded(project, variant, stored["shapes"])
    path = tmp_path_factory.mktemp("peer") / "weights.pth"
    torch.save({"model": state}, path)
    return project, variant, stored, path


def test_outputs_of_the_projects_own_code(case):
    """Logits and boxes to 1e-4, by MODEL.WEIGHTS alone."""
    project, variant, stored, path = case
    found = peers.outputs(peers.loaded(project, variant, path), project)
    for key in ("pred_logits", "pred_boxes"):
        assert_close(found[key], stored[key], rtol=0, atol=1e-4)
    assert stored["pred_logits"].std() > 0.3


def test_outputs_after_a_way_through_all_projects(case, tmp_path):
    """From one to the next, the model computes the same to the bit."""
    project, variant, _, path = case
    expected = peers.outputs(peers.loaded(project, variant, path), project)
    dilated = variant == "single_scale_dc5"
    way = ["ddetr", "official", "detrex"]
    if dilated:  # the other ones have a thin ResNet
        way.insert(1, "transformers")
    for i, to in enumerate(way):
        convert_file(str(path), str(tmp_path / f"{i}"), to=to, dilated=dilated)
        path = tmp_path / f"{i}"
    found = peers.outputs(peers.loaded(project, variant, path), project)
    assert all(torch.equal(found[k], expected[k]) for k in ("pred_logits", "pred_boxes"))


@pytest.mark.parametrize("name, variant", ALL_KEYS)
def test_every_key_has_a_place(name, variant):
    """None missing, none left over, shapes equal: those of the shipped config."""
    shapes = keys(name)[variant]
    project, found = recognised({f"module.{k}": v for k, v in peers.zeros(shapes).items()})
    assert project is PROJECTS[KEYS[name]]
    converted = project.to_here(found)
    opts = ["MODEL.DEVICE", "meta", "MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 2]
    opts += ["MODEL.DETR.NUM_QUERIES", 100]
    opts += ["MODEL.DETR.NUM_CLASSES", 80 if name == "detrex" else 91]
    with torch.device("meta"):
        model = build_model(load_config(get_config_file(VARIANTS[variant]), opts))
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected


@pytest.mark.parametrize("name, variant", ALL_KEYS)
def test_there_and_back(name, variant):
    """
    A file of another project, here, and written for it again, is the same to the bit; files of
    transformers leave out names that ours have, too.
    """
    project, state = PROJECTS[KEYS[name]], random(keys(name)[variant])
    refines = variant in ("refine", "two_stage")
    here = project.to_here(state)
    again = project.from_here(here, refines)
    if name in ("official", "detrex"):
        same(again, state)
    same(project.to_here(again), here)
    if name == "transformers":
        assert state.keys() <= again.keys()
        same({key: again[key] for key in state}, state)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "project",
    [p for p in OTHERS if not p.anchors and "detr" not in p.key.split("-")],
    ids=lambda project: project.key,
)
def test_ours_there_and_back(project, variant):
    here = PROJECTS["official"].to_here(official(variant))
    refines = variant in ("refine", "two_stage")
    there = project.from_here(here, refines)
    found, _ = recognised(there)
    assert found is project and project.refines(there) == refines
    same(project.to_here(there), here)
    assert HERE.refines(here) == refines


@pytest.mark.parametrize("system", list(family.SYSTEMS))
def test_relatives_there_and_back(system):
    """H-DETR, DAB-, DN-Deformable-DETR and DINO; none is taken for, or written as, another."""
    state = family.official_state_dict(system, family.load(f"model_{system}"))
    project, found = recognised(state)
    of_anchors = {"dino": "dino", "dab_deformable": "dab", "dn_dab_deformable": "dab"}
    assert project.key == of_anchors.get(system, "official") and found is state
    here = project.to_here(state)
    same(project.from_here(here, True), state)
    check_head(here, True, system)
    for other in OTHERS:
        if other.key == "detrex":
            assert recognised(there := other.from_here(here, True))[0] is other
            back = other.to_here(there)
            if system == "dino":  # detrex's label embedding has not the row that no query has
                here["head.denoising.label_enc.weight"][-1] = 0
            same(back, here)
        elif other is not project:
            with pytest.raises(InputError):
                other.from_here(here, True)


def test_copies_of_transformers_under_one_name_are_enough():
    """A format that keeps one of two names for a tensor may keep either."""
    project, here = PROJECTS["transformers"], PROJECTS["official"].to_here(official("two_stage"))
    full = project.from_here(here, True)
    for begin in ("model.decoder.bbox_embed.", "model.decoder.class_embed.", "bbox_embed."):
        some = {key: value for key, value in full.items() if not key.startswith(begin)}
        same(project.to_here(some), here)
    changed = {**full, "bbox_embed.0.layers.0.bias": full["bbox_embed.0.layers.0.bias"] + 1}
    with pytest.raises(InputError, match="model.decoder.bbox_embed.0.layers.0.bias and bbox_em"):
        project.to_here(changed)


@pytest.mark.parametrize("name", ["detrex", "transformers", "transformers_memory"])
def test_any_load_state_dict(name):
    """Of the model itself, strictly, under a common beginning."""
    state = random(keys(name)["refine"])
    opts = ["MODEL.DETR.NUM_CLASSES", 80 if name == "detrex" else 91, "MODEL.DETR.NUM_QUERIES", 100]
    opts += ["MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DEVICE", "cpu"]
    model = build_model(load_config(get_config_file(VARIANTS["refine"]), opts))
    model.load_state_dict({f"module.{key}": value for key, value in state.items()})
    same(dict(model.state_dict()), PROJECTS[KEYS[name]].to_here(state))


def test_a_backbone_that_they_do_not_have_is_refused(tmp_path):
    here = PROJECTS["official"].to_here(official("refine"))
    with pytest.raises(InputError, match="has no place for 1 of .*backbone.network.x"):
        PROJECTS["official"].from_here({**here, "backbone.network.x": torch.zeros(1)}, True)
