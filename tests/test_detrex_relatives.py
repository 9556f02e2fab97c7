"""detrex's checkpoints of H-, DAB-, DN-Deformable-DETR and DINO, by the keys of its own modules."""

import json

import pytest
import torch

from detectron2_ddetr import Checkpointer, load_config
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine, fitting_config
from detectron2_ddetr.checkpoint.projects import PROJECTS, recognised
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from . import family_cases as family
from .conftest import CONFIGS
from .project_cases import random, same

DETREX = PROJECTS["detrex"]
BOOK = "head.denoising.label_enc.weight"
STORED = json.loads((family.FAMILY / "keys_detrex.json").read_text())
SYSTEMS = [name for name in STORED if name != "shared"]


def state_of(system, seed=0):
    """A random state dict with detrex's names; copies equal their owners."""
    state = random(STORED["shared"] | STORED[system], seed)
    for key in state:
        owner = key.removeprefix("transformer.decoder.")
        if owner.startswith(("class_embed.", "bbox_embed.")):
            state[key] = state[owner]
    return state


def model_of(system, *opts):
    """Ours with the sizes of these keys."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts]
    for key, value in (("ENC_LAYERS", 2), ("DEC_LAYERS", 2), ("NUM_QUERIES", 30)):
        opts += [f"MODEL.DETR.{key}", value]
    if system == "hdetr":
        opts += ["MODEL.DETR.ONE_TO_MANY.NUM_QUERIES", 40]
    return build_model(load_config(str(CONFIGS / family.SYSTEMS[system]), opts))


def detrex_dino(system):
    return ["MODEL.META_ARCHITECTURE", "DetrexDINO"] if system == "dino" else []


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_key_has_a_place(system, tmp_path):
    """None missing, none left over, each where it belongs; loaded by MODEL.WEIGHTS."""
    state = state_of(system)
    project, found = recognised({f"module.{key}": value for key, value in state.items()})
    assert project is DETREX
    here = project.to_here(found)
    model = model_of(system, *detrex_dino(system))
    assert {k: v.shape for k, v in here.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "a.pth")
    Checkpointer(model, needs_head=True).load(str(tmp_path / "a.pth"), checkpointables=[])
    loaded = model.state_dict()
    assert [key for key in here if not torch.equal(loaded[key], here[key])] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_there_and_back(system):
    state = state_of(system)
    same(DETREX.from_here(DETREX.to_here(state), True), state)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_doctor(system, tmp_path):
    """Which config, and for DINO which meta-architecture."""
    torch.save({"model": state_of(system)}, tmp_path / "a.pth")
    found = examine(str(tmp_path / "a.pth"))
    config, opts = fitting_config(found)
    if system != "hdetr":  # its 70 queries here are not told from those that detect
        assert config == family.SYSTEMS[system].split("/")[1]
    assert (opts.get("MODEL.META_ARCHITECTURE") == "DetrexDINO") == (system == "dino")
    assert "classes: 80 rows, COCO's 80 in their order" in describe(found)


@pytest.mark.parametrize("system", ["hdetr", "dab_deformable", "dn_dab_deformable"])
def test_from_the_authors_to_detrex_and_back(system, tmp_path):
    """Through files, with the authors' 91 rows for COCO's classes."""
    state = family.official_state_dict(system, family.load(f"model_{system}"))
    torch.save({"model": state}, tmp_path / "a.pth")
    for start, end, to in (("a", "b", "detrex"), ("b", "c", examine_key(system))):
        files = (str(tmp_path / f"{name}.pth") for name in (start, end))
        convert_file(*files, to=to, classes="same")
    same(torch.load(tmp_path / "c.pth", weights_only=True)["model"], state)


def examine_key(system):
    return "official" if system == "hdetr" else "dab"


def test_label_embeddings():
    """DINO's has no row for a class that no query has, DN's has, under two names."""
    state = state_of("dino")
    book = DETREX.to_here(state)[BOOK]
    assert book.shape == (81, 256) and not book[-1].any()
    assert torch.equal(book[:-1], state["label_enc.weight"])
    state = state_of("dn_dab_deformable")
    here = DETREX.to_here(state)
    assert here[BOOK].shape == (81, 255)
    state["label_encoder.weight"] = state.pop("denoising_generator.label_encoder.weight")
    same(DETREX.to_here(state), here)


def test_heads_that_differ_are_not_shared(tmp_path):
    """detrex's DINO is neither loaded into DINO nor written for it: one head would win silently."""
    path = tmp_path / "a.pth"
    torch.save({"model": state_of("dino")}, path)
    with pytest.raises(InputError, match="a.pth does not fit .*heads of its own.*DetrexDINO"):
        Checkpointer(model_of("dino")).load(str(path), checkpointables=[])
    with pytest.raises(InputError, match="a.pth: the official DINO has one class head and one box"):
        convert_file(str(path), str(tmp_path / "b.pth"), to="dino", classes="same")
    assert not (tmp_path / "b.pth").exists()


def test_a_two_stage_dab_is_not_ours(tmp_path):
    """Its content is what the encoder says of the proposals."""
    extra = {key: STORED["dino"][key] for key in STORED["dino"] if "enc_output" in key}
    state = state_of("dab_deformable") | random(extra)
    for key in ("tgt_embed.weight", "refpoint_embed.weight"):
        del state[key]
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="a.pth.*not fit"):
        examine(str(tmp_path / "a.pth"))
