"""Rows of classes in checkpoints of other projects: they go by name, here and back."""

import json

import pytest
import torch

from detectron2_ddetr import convert_official_state_dict
from detectron2_ddetr.checkpoint.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.errors import InputError

from . import family_cases as family
from .project_cases import official, same


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_rows_of_coco_go_by_name(variant, tmp_path):
    """91 -> 80 -> 91: a row is where its class is; the rows of none are never detected."""
    state = official(variant)
    torch.save({"model": state}, tmp_path / "91.pth")
    convert_file(str(tmp_path / "91.pth"), str(tmp_path / "80.pth"))
    convert_file(str(tmp_path / "80.pth"), str(tmp_path / "again.pth"), to="official")
    convert_file(str(tmp_path / "again.pth"), str(tmp_path / "80_again.pth"))
    here, back, again = (
        load_checkpoint_file(str(tmp_path / name))["model"]
        for name in ("80.pth", "again.pth", "80_again.pth")
    )
    same(here, again)
    rest = [row for row in range(91) if row not in COCO_CATEGORY_IDS]
    for key, value in state.items():
        if "class_embed." not in key:
            assert torch.equal(back[key], value)
        elif "class_embed.2." in key:  # the encoder's: an object or none
            assert torch.equal(back[key][0], value[0])
        else:
            assert torch.equal(back[key][COCO_CATEGORY_IDS], value[COCO_CATEGORY_IDS])
            never = 0.0 if value.dim() == 2 else -100.0
            assert (back[key][rest] == never).all()
    bias = here["head.class_embed.0.bias"]
    assert torch.equal(bias, state["class_embed.0.bias"][COCO_CATEGORY_IDS])
    assert load_checkpoint_file(str(tmp_path / "80.pth"))["class_names"] == COCO_CLASSES


def test_rows_that_the_other_project_has_stay(tmp_path):
    """Of 91 rows, also those that no class has."""
    state = official("two_stage")
    torch.save({"model": state}, tmp_path / "a.pth")
    convert_file(str(tmp_path / "a.pth"), str(tmp_path / "hub"), to="transformers")
    convert_file(str(tmp_path / "hub"), str(tmp_path / "b.pth"), to="official")
    same(load_checkpoint_file(str(tmp_path / "b.pth"))["model"], state)


@pytest.mark.parametrize("system", ["dino", "dn_dab_deformable"])
def test_class_rows_of_relatives(system):
    """COCO's 80 of 91 rows, in the encoder's head and the label book too, whose last row stays."""
    state = family.official_state_dict(system, family.load(f"model_{system}"))
    here = convert_official_state_dict(state, class_ids=COCO_CATEGORY_IDS)
    book = here["head.denoising.label_enc.weight"]
    assert torch.equal(book, state["label_enc.weight"][[*COCO_CATEGORY_IDS, 91]])
    last = "transformer.enc_out_class_embed" if system == "dino" else "class_embed.1"
    index = 2 if system == "dino" else 1  # after two layers of the decoder stands the encoder
    expected = state[f"{last}.bias"][COCO_CATEGORY_IDS]
    assert torch.equal(here[f"head.class_embed.{index}.bias"], expected)


def test_classes_of_a_list(tmp_path):
    """In its order; a json in COCO's format has them in the order of their ids."""
    torch.save({"model": official("refine")}, tmp_path / "a.pth")
    categories = [{"id": 9, "name": "Dog"}, {"id": 4, "name": "person "}]
    for content, rows in ((["cat", "person"], [17, 1]), ({"categories": categories}, [1, 18])):
        (tmp_path / "names.json").write_text(json.dumps(content))
        out = tmp_path / f"{rows}.pth"
        convert_file(str(tmp_path / "a.pth"), str(out), classes=str(tmp_path / "names.json"))
        bias = load_checkpoint_file(str(out))["model"]["head.class_embed.1.bias"]
        assert torch.equal(bias, official("refine")["class_embed.1.bias"][rows])


@pytest.mark.parametrize(
    "content, words",
    [
        (["cat", "unicorn"], "has no class unicorn, only person, bicycle"),
        ([], "a list of class names"),
        ([1], "a list of class names"),
        (["cat", "cat"], "twice"),
        ({"categories": [{"id": 1}]}, "no categories with id and name"),
        ({"images": []}, "no categories with id and name"),
        ("cat", "a list of class names"),
    ],
)
def test_classes_that_cannot_be_are_refused(content, words, tmp_path):
    torch.save({"model": official("refine")}, tmp_path / "a.pth")
    (tmp_path / "names.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        convert_file(
            str(tmp_path / "a.pth"),
            str(tmp_path / "out.pth"),
            classes=str(tmp_path / "names.json"),
        )
    assert not (tmp_path / "out.pth").exists()
