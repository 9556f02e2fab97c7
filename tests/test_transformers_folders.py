"""Folders of transformers: weights with the names of their classes, read and written."""

import hashlib
import json
import pickle

import pytest
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.checkpoint.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine, source_of
from detectron2_ddetr.checkpoint.projects import PROJECTS
from detectron2_ddetr.checkpoint.safetensors import load_safetensors, save_safetensors
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from . import golden_cases as golden
from . import peer_cases as peers
from .project_cases import official
from .test_checkpoint import Evil


def hub_folder(folder, variant, config, seed=0):
    """As `save_pretrained` makes one, from weights of the official code."""
    folder.mkdir()
    here = PROJECTS["official"].to_here(official(variant, seed))
    tensors = PROJECTS["transformers"].from_here(here, variant in ("refine", "two_stage"))
    save_safetensors(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    config = {
        "model_type": "deformable_detr",
        "with_box_refine": variant != "multi_scale",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return here


HOLES = {row: "N/A" for row in range(91) if row not in COCO_CATEGORY_IDS}


COCO_ID2LABEL = {
    str(row): name
    for row, name in sorted({**HOLES, **dict(zip(COCO_CATEGORY_IDS, COCO_CLASSES))}.items())
}


@pytest.mark.parametrize("holes", ["N/A", "street sign"])
@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_weights_may_be_a_folder(variant, holes, tmp_path):
    """Of COCO's 91 rows, the 80 of its classes, with their names."""
    labels = {k: holes if v == "N/A" else v for k, v in COCO_ID2LABEL.items()}
    here = hub_folder(tmp_path / "hub", variant, {"id2label": labels})
    cfg = golden.config(variant, golden.load(f"model_{variant}"))
    cfg.MODEL.DETR.NUM_CLASSES = 80
    model = build_model(cfg)
    checkpointer = Checkpointer(model, needs_head=True, class_names=COCO_CLASSES)
    checkpointer.load(str(tmp_path / "hub"), checkpointables=[])
    state = model.state_dict()
    for key, value in here.items():
        if not key.startswith("head.class_embed."):
            assert torch.equal(state[key], value)
    bias = here["head.class_embed.0.bias"]
    assert torch.equal(state["head.class_embed.0.bias"], bias[COCO_CATEGORY_IDS])


def test_names_and_licence_of_a_folder(tmp_path):
    names = {str(i): f"cell {i}" for i in range(91)}
    hub_folder(tmp_path / "hub", "refine", {"id2label": names, "dilation": False})
    (tmp_path / "hub" / "README.md").write_text("---\ntags:\n- x\nlicense: mit\n---\n# A model\n")
    found = examine(str(tmp_path / "hub"))
    assert found.names == list(names.values()) and found.licence == "mit"
    assert found.refines and found.dilated is False
    assert "91 rows: cell 0, cell 1" in describe(found) and "licence: mit" in describe(found)
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "yolos", "id2label": 3}')
    assert examine(str(tmp_path / "hub")).names[1] == "person"  # of another model: not looked at


def test_a_folder_may_have_its_weights_in_several_files(tmp_path):
    """The same model, and its source is all of them."""
    here = hub_folder(tmp_path / "hub", "refine", {})
    whole, metadata = load_safetensors(str(tmp_path / "hub" / "model.safetensors"))
    (tmp_path / "hub" / "model.safetensors").unlink()
    halves = [dict(list(whole.items())[i::2]) for i in range(2)]
    weight_map, data = {}, b""
    for i, half in enumerate(halves):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        save_safetensors(half, str(tmp_path / "hub" / name), metadata)
        weight_map |= dict.fromkeys(half, name)
        data += (tmp_path / "hub" / name).read_bytes()
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = examine(str(tmp_path / "hub"))
    assert found.refines and found.tensors.keys() == here.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in here.items())
    assert source_of(found)["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "config, words",
    [
        ({"id2label": {"0": "a", "2": "b"}}, "by row, from 0"),
        ({"id2label": {"0": 5}}, "by row, from 0"),
        ({"id2label": ["a"]}, "by row, from 0"),
    ],
)
def test_folders_that_name_classes_otherwise_are_refused(config, words, tmp_path):
    hub_folder(tmp_path / "hub", "refine", config)
    with pytest.raises(InputError, match=f"config.json: .*{words}"):
        examine(str(tmp_path / "hub"))


def test_files_of_a_folder_run_no_code(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "deformable_detr"}')
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        pickle.dump({"model.level_embed": Evil(tmp_path / "marker")}, file)
    with pytest.raises(InputError, match="pytorch_model.bin: .*tensors and plain data only"):
        examine(str(tmp_path))
    assert not (tmp_path / "marker").exists()


def test_a_folder_is_written_for_from_pretrained(tmp_path):
    torch.save({"model": official("two_stage")}, tmp_path / "a.pth")
    convert_file(str(tmp_path / "a.pth"), str(tmp_path / "hub"), to="transformers", licence="MIT")
    assert sorted(p.name for p in (tmp_path / "hub").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    tensors, metadata = load_safetensors(str(tmp_path / "hub" / "model.safetensors"))
    assert peers.keys("transformers")["two_stage"].keys() <= tensors.keys()
    assert metadata["format"] == "pt" and metadata["licence"] == "MIT"
    assert json.loads(metadata["source"])["file"] == "a.pth"
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["id2label"] == COCO_ID2LABEL
    expected = {
        "model_type": "deformable_detr",
        "backbone": "resnet50",
        "two_stage": True,
        "with_box_refine": True,
        "dilation": False,
        "encoder_layers": 2,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 1024,
        "num_feature_levels": 4,
    }
    assert expected.items() <= config.items()
