"""Checkpoints are told apart: their project, config, source and licence; others are refused."""

import json

import pytest
import torch

from detectron2_ddetr import Checkpointer, load_config
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine, fitting_config
from detectron2_ddetr.checkpoint.project import is_two_stage
from detectron2_ddetr.checkpoint.projects import PROJECTS
from detectron2_ddetr.cli import main
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.model_zoo import get_config_file
from detectron2_ddetr.toolbox import build_model

from . import peer_cases as peers
from .conftest import VARIANTS
from .project_cases import keys, official, random


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_that_fits(variant, tmp_path):
    """With the keys that differ, the shipped config makes a model of these tensors."""
    torch.save({"model": official(variant), "args": {}}, tmp_path / "a.pth")
    found = examine(str(tmp_path / "a.pth"))
    if variant == "single_scale_dc5":
        found = found._replace(dilated=True)
    name, differ = fitting_config(found)
    assert VARIANTS[variant].endswith(name)
    opts = [x for pair in differ.items() for x in pair]
    with torch.device("meta"):
        model = build_model(load_config(get_config_file(name), ["MODEL.DEVICE", "meta", *opts]))
    queries = "head.query_embed.weight"
    assert is_two_stage(found.tensors) == (queries not in found.tensors)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in found.tensors.items()} == expected


def test_dc5_has_to_be_known(tmp_path):
    """No tensor tells: a file of the authors' has it among its arguments."""
    import argparse

    state = official("single_scale_dc5")
    torch.save({"model": state}, tmp_path / "a.pth")
    torch.save({"model": state, "args": argparse.Namespace(dilation=True)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="--dc5 or --no-dc5"):
        convert_file(str(tmp_path / "a.pth"), str(tmp_path / "hub"), to="transformers")
    convert_file(str(tmp_path / "b.pth"), str(tmp_path / "c.pth"))
    convert_file(str(tmp_path / "c.pth"), str(tmp_path / "hub"), to="transformers")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["dilation"] is True
    assert examine(str(tmp_path / "hub")).dilated is True
    with pytest.raises(InputError, match="dilation is True"):
        convert_file(str(tmp_path / "c.pth"), str(tmp_path / "d.pth"), dilated=False)
    assert "or that of DC5" in describe(examine(str(tmp_path / "a.pth")))


def test_dc5_is_told_from_single_scale_where_the_file_says_it(tmp_path):
    """Evaluated with the other backbone, the same tensors would find less; a training may start."""
    models = {
        variant: build_model(peers.thin_cfg("detrex", variant))
        for variant in ("single_scale", "single_scale_dc5")
    }
    for variant, model in models.items():
        Checkpointer(model, str(tmp_path)).save_weights(variant)
        path = str(tmp_path / f"{variant}.pth")
        assert examine(path).dilated == (variant == "single_scale_dc5")
        for other, into in models.items():
            evaluated = Checkpointer(into, needs_head=True)
            if other == variant:
                evaluated.load(path, checkpointables=[])
                continue
            with pytest.raises(InputError, match="DC5.*RES5_DILATION"):
                evaluated.load(path, checkpointables=[])
            names = [f"class {i}" for i in range(5)]
            Checkpointer(into, class_names=names).load(path, checkpointables=[])


def test_source_and_licence_are_carried_on(tmp_path, capsys):
    torch.save({"model": official("refine")}, tmp_path / "a.pth")
    main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--licence", "Apache-2.0"])
    main(["convert", str(tmp_path / "b.pth"), str(tmp_path / "c.pth"), "--to", "detrex"])
    capsys.readouterr()
    main(["convert", str(tmp_path / "c.pth")])
    said = capsys.readouterr().out
    for words in ("c.pth: a checkpoint of detrex", "licence: Apache-2.0", "file b.pth, sha256 "):
        assert words in said
    first = torch.load(tmp_path / "c.pth", weights_only=True)["source"]["source"]
    assert first["file"] == "a.pth" and first["project"] == "a checkpoint of the official code"
    assert len(first["sha256"]) == 64


def test_what_detrex_computes_otherwise_is_said(tmp_path):
    path = str(tmp_path / "a.pth")
    torch.save({"model": random(keys("detrex")["refine"])}, path)
    assert "note: detrex keeps boxes 0.001" in describe(examine(path))


def test_nothing_is_overwritten(tmp_path):
    torch.save({"model": official("refine")}, tmp_path / "a.pth")
    (tmp_path / "there").mkdir()
    for output, to in (("a.pth", "ddetr"), ("there", "transformers")):
        with pytest.raises(InputError, match=f"{output} is there already"):
            convert_file(str(tmp_path / "a.pth"), str(tmp_path / output), to=to)


@pytest.mark.parametrize(
    "extra, words",
    [
        ({"mask_embed.layers.0.weight": 3}, "mask_embed"),  # MaskDINO
        ({"transformer.patterns.weight": 3}, "patterns"),
    ],
)
def test_other_models_of_a_known_project_are_refused(extra, words, tmp_path):
    state = peers.zeros({**keys("detrex")["two_stage"], **extra})
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=f"x.pth: not a checkpoint of detrex.*{words}"):
        examine(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("variant", ["single_scale", "two_stage"])
def test_what_is_missing_or_of_another_shape_is_named(variant, tmp_path):
    """Whatever is taken away or cut, in any file."""
    state = PROJECTS["official"].to_here(official(variant))
    state = {key: x.new_zeros(1).expand(x.shape) for key, x in state.items()}  # small files
    heads = [key for key in state if key.startswith("head.")]
    for key in [*heads[:: len(heads) // 12], "head.transformer.level_embed"]:
        without = {k: v for k, v in state.items() if k != key}
        cut = {**state, key: state[key][..., :-1]}
        for changed in (without, cut):
            torch.save(
                {"model": changed, "with_box_refine": variant == "two_stage"}, tmp_path / "x"
            )
            with pytest.raises(InputError, match="x: |x does not fit"):
                examine(str(tmp_path / "x"))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    state = official("refine")
    state["query_embed.weight"][3, 4] = float("nan")
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="a.pth: 1 of .*query_embed.*NaN or infinite"):
        convert_file(str(tmp_path / "a.pth"), str(tmp_path / "b.pth"))


def test_what_is_no_detector_is_named(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "r50.pth")
    with pytest.raises(InputError, match="r50.pth: .*Known are"):
        examine(str(tmp_path / "r50.pth"))


def test_a_backbone_that_no_config_names_is_refused(tmp_path):
    """The thin ResNet of the quick starts; nothing is left of the folder."""
    path, names = str(tmp_path / "thin.pth"), ["RBC", "WBC", "Platelets"]
    model = build_model(load_config(get_config_file("Base-BloodCells.yaml")))
    torch.save({"model": model.state_dict(), "class_names": names}, path)
    assert "two_stage_50ep.yaml (with another backbone)" in describe(examine(path))
    with pytest.raises(InputError, match="thin.pth: its backbone is no ResNet of timm's"):
        convert_file(path, str(tmp_path / "hub"), to="transformers")
    assert [x.name for x in tmp_path.iterdir()] == ["thin.pth"]
    convert_file(path, str(tmp_path / "detrex.pth"), to="detrex")
    assert examine(str(tmp_path / "detrex.pth")).names == names
