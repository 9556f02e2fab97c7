"""Checkpoints of DETR: by its authors and of transformers, read, converted and written back."""

import json

import pytest
import torch

from detectron2_ddetr import Checkpointer, convert_official_state_dict, load_config
from detectron2_ddetr.checkpoint.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine, fitting_config
from detectron2_ddetr.checkpoint.head_shapes import check_head
from detectron2_ddetr.checkpoint.projects import HERE, OTHERS, PROJECTS, recognised
from detectron2_ddetr.cli import main
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.model_zoo import get_config_file
from detectron2_ddetr.toolbox import build_model

from . import family_cases as family
from .conftest import SYSTEMS, VARIANTS, small_cfg
from .golden_cases import GOLDEN
from .project_cases import random, same

DETR, THEIRS = PROJECTS["detr"], PROJECTS["transformers-detr"]
CONFIG = "detr/detr_R_50_500ep.yaml"


def keys_of_transformers():
    """{kind: {key: shape}}, R-50, 2+2 layers, 91 classes; transformers 5.24.0."""
    path = GOLDEN / "family" / "keys_transformers_detr.json"
    stored = json.loads(path.read_text())
    shared = stored.pop("shared")
    return {kind: shared | shapes for kind, shapes in stored.items()}


KEYS = {"official": family.shapes("detr"), **keys_of_transformers()}


def model_of(*opts, config=CONFIG, device="meta"):
    with torch.device(device):
        return build_model(load_config(get_config_file(config), ["MODEL.DEVICE", device, *opts]))


def shapes_of(state_dict):
    return {key: tuple(value.shape) for key, value in state_dict.items()}


LAYERS = ["MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 2]


@pytest.mark.parametrize("kind", KEYS)
def test_every_key_has_a_place(kind):
    """None missing, none left over, shapes equal; under a common beginning too."""
    project = DETR if kind == "official" else THEIRS
    state = random(KEYS[kind])
    found, without = recognised({f"module.{key}": value for key, value in state.items()})
    assert found is project
    queries = 30 if kind == "official" else 100
    opts = ["MODEL.DETR.NUM_CLASSES", 91, "MODEL.DETR.NUM_QUERIES", queries]
    here = project.to_here(without)
    assert shapes_of(here) == shapes_of(model_of(*opts, *LAYERS).state_dict())
    check_head(here, False, kind)
    assert here["head.class_embed.1.weight"] is here["head.class_embed.0.weight"]


@pytest.mark.parametrize("kind", KEYS)
def test_there_and_back(kind):
    """To the bit; names of a file stay what they are."""
    project, state = DETR if kind == "official" else THEIRS, random(KEYS[kind])
    here = project.to_here(state)
    again = project.from_here(here, refines=False)
    same(project.to_here(again), here)
    if kind in ("official", "file"):
        same(again, state)
    for other in OTHERS:
        if other not in (DETR, THEIRS):
            with pytest.raises(InputError):
                other.from_here(here, False)
    assert recognised(here)[0] is HERE and not HERE.refines(here)


@pytest.mark.parametrize("system", ["dino", "ddetr_tricks", "dab_deformable"])
def test_no_relative_is_written_as_detr(system):
    state = family.official_state_dict(system, family.load(f"model_{system}"))
    project, _ = recognised(state)
    for detr in (DETR, THEIRS):
        assert project is not detr
        with pytest.raises(InputError):
            detr.from_here(project.to_here(state), True)


def official_file(path, kind="official"):
    state = random(KEYS[kind])
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, path)
    return state


def test_class_rows():
    """COCO's 80 of the 91 by id; the row of no object, the last, stays the last."""
    state = random(KEYS["official"])
    here = convert_official_state_dict(state, class_ids=COCO_CATEGORY_IDS)
    for name in ("weight", "bias"):
        expected = state[f"class_embed.{name}"][[*COCO_CATEGORY_IDS, 91]]
        for layer in (0, 1):
            assert torch.equal(here[f"head.class_embed.{layer}.{name}"], expected)
    assert len(convert_official_state_dict(state)["head.class_embed.0.bias"]) == 92
    with pytest.raises(InputError, match="row 92 is asked for"):
        convert_official_state_dict(state, class_ids=[92])


def test_weights_of_a_config(tmp_path):
    """MODEL.WEIGHTS takes the file; of 91 classes or of the 80."""
    state = official_file(tmp_path / "official.pth")
    for classes, rows in ((91, range(92)), (80, [*COCO_CATEGORY_IDS, 91])):
        opts = ["MODEL.DETR.NUM_CLASSES", classes, "MODEL.DETR.NUM_QUERIES", 30, *LAYERS]
        model = model_of(*opts, device="cpu")
        found = Checkpointer(model, needs_head=True)
        found.load(str(tmp_path / "official.pth"), checkpointables=[])
        expected = state["class_embed.weight"][[*rows]]
        assert torch.equal(model.head.class_embed[1].weight, expected)
        names = [name for name in found.found_names if name]
        assert names == COCO_CLASSES


def test_fine_tuning_keeps_what_no_object_is(tmp_path):
    """Classes go by name, and the last row stays, whatever their number."""
    state = official_file(tmp_path / "official.pth")
    opts = ["MODEL.DETR.NUM_CLASSES", 3, "MODEL.DETR.NUM_QUERIES", 30, *LAYERS]
    model = model_of(*opts, device="cpu")
    before = model.head.class_embed[0].weight.detach().clone()
    start = Checkpointer(model, class_names=["cat", "cell", "dog"])
    start.load(str(tmp_path / "official.pth"), checkpointables=[])
    after, old = model.head.class_embed[0].weight, state["class_embed.weight"]
    assert torch.equal(after[[0, 2, 3]], old[[17, 18, 91]])
    assert torch.equal(after[1], before[1])


def test_the_command(tmp_path, capsys):
    """Official -> transformers -> here -> official: the same to the bit."""
    state = official_file(tmp_path / "a.pth")
    ways = [("a.pth", "c", "transformers-detr", ["--no-dc5"]), ("c", "b.pth", "ddetr", []),
            ("b.pth", "d.pth", "detr", [])]  # fmt: skip
    for source, name, to, words in ways:
        words = ["--to", to, "--classes", "same", *words]
        main(["convert", str(tmp_path / source), str(tmp_path / name), *words])
    same(torch.load(tmp_path / "d.pth", weights_only=True)["model"], state)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    sizes = {"model_type": "detr", "num_queries": 30, "d_model": 256, "encoder_layers": 2,
             "decoder_layers": 2, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048,
             "dilation": False}  # fmt: skip
    assert {key: config[key] for key in sizes} == sizes
    assert len(config["id2label"]) == 91 and config["id2label"]["17"] == "cat"
    assert "num_feature_levels" not in config and config["architectures"] == [
        "DetrForObjectDetection"
    ]
    main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "e.pth")])
    written = torch.load(tmp_path / "e.pth", weights_only=True)["model"]
    assert len(written["head.class_embed.0.bias"]) == 81
    capsys.readouterr()
    main(["convert", str(tmp_path / "c")])
    said = capsys.readouterr().out
    for words in ("DETR in Hugging Face transformers", "detr_R_50_500ep.yaml\n", "COCO's by cat"):
        assert words in said
    with pytest.raises(InputError, match="does not say whether its last stage is dilated"):
        convert_file(str(tmp_path / "a.pth"), str(tmp_path / "f"), to="transformers-detr")


@pytest.mark.parametrize("dilated, words", [(None, "or that of DC5"), (True, "R_50_dc5_500ep")])
def test_the_config_that_fits(dilated, words, tmp_path):
    official_file(tmp_path / "a.pth")
    found = examine(str(tmp_path / "a.pth"))._replace(dilated=dilated)
    assert words in describe(found)
    name, differ = fitting_config(found)
    model = model_of(*[x for pair in differ.items() for x in pair], config=name)
    assert shapes_of(model.state_dict()) == shapes_of(found.tensors)


def test_what_is_damaged_is_refused(tmp_path):
    state = official_file(tmp_path / "a.pth")
    del state["transformer.decoder.norm.weight"]
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="missing, the first: head.transformer.decoder.norm.wei"):
        examine(str(tmp_path / "b.pth"))
    torch.save({"model": {**state, "mask_head.lay1.weight": torch.zeros(3)}}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="unknown keys: .*mask_head.lay1"):
        examine(str(tmp_path / "c.pth"))


def test_another_transformer_is_refused(tmp_path):
    """DETR's weights in a Deformable DETR, and the other way round."""
    cfgs = {
        "": small_cfg(config=SYSTEMS["detr"]),
        "Deformable ": small_cfg(config=VARIANTS["single_scale"]),
    }
    for of, cfg in cfgs.items():
        Checkpointer(build_model(cfg), str(tmp_path)).save_weights(f"{of}weights")
        (other,) = (c for name, c in cfgs.items() if name != of)
        with pytest.raises(InputError, match=f"of {of}DETR, whose transformer.*META_ARCHITECTURE"):
            path = str(tmp_path / f"{of}weights.pth")
            Checkpointer(build_model(other), needs_head=True).load(path, checkpointables=[])
