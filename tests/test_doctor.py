"""Checkpoints of other projects: told apart, computing here what they compute there, and back."""

import hashlib
import json
import pickle

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import Checkpointer, convert_official_state_dict, load_config
from detectron2_ddetr.checkpoint.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine, fitting_config, source_of
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.checkpoint.head_shapes import check_head
from detectron2_ddetr.checkpoint.project import is_two_stage
from detectron2_ddetr.checkpoint.projects import HERE, OTHERS, PROJECTS, recognised
from detectron2_ddetr.checkpoint.safetensors import load_safetensors, save_safetensors
from detectron2_ddetr.cli import main
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.model_zoo import get_config_file
from detectron2_ddetr.toolbox import build_model

from . import family_cases as family
from . import golden_cases as golden
from . import peer_cases as peers
from .conftest import VARIANTS
from .test_checkpoint import Evil

#: {name of a list of keys: its project}
KEYS = {
    "official": "official",
    "transformers": "transformers",
    "transformers_memory": "transformers",
    "detrex": "detrex",
}


def keys(name):
    if name != "official":
        return peers.keys(name)
    files = {v: golden.GOLDEN / f"state_dict_{v}.json" for v in VARIANTS}
    return {variant: json.loads(path.read_text()) for variant, path in files.items()}


ALL_KEYS = [(name, variant) for name in KEYS for variant in keys(name)]


def random(shapes, seed=0):
    """Different numbers in each tensor, but for copies of heads and heads that are shared."""
    generator, state = torch.Generator().manual_seed(seed), {}
    copies = "transformer.decoder.", "model.decoder."
    for key in sorted(shapes, key=lambda key: key.startswith(copies)):
        owner = key
        for begin in copies:
            owner = owner.removeprefix(begin) if "_embed." in key else owner
        value = state[owner] if owner in state else torch.randn(shapes[key], generator=generator)
        state[key] = value
    return state


def official(variant, seed=0):
    state = random(keys("official")[variant], seed)
    if variant not in ("refine", "two_stage"):
        for key in state:
            if "_embed.1." in key:
                state[key] = state[key.replace("_embed.1.", "_embed.0.")]
    return state


def same(a, b):
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


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


# Classes.


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


# Folders of transformers.


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


@pytest.mark.parametrize("name", ["detrex", "transformers", "transformers_memory"])
def test_any_load_state_dict(name):
    """Of the model itself, strictly, under a common beginning."""
    state = random(keys(name)["refine"])
    opts = ["MODEL.DETR.NUM_CLASSES", 80 if name == "detrex" else 91, "MODEL.DETR.NUM_QUERIES", 100]
    opts += ["MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DEVICE", "cpu"]
    model = build_model(load_config(get_config_file(VARIANTS["refine"]), opts))
    model.load_state_dict({f"module.{key}": value for key, value in state.items()})
    same(dict(model.state_dict()), PROJECTS[KEYS[name]].to_here(state))


# What is said, and what is refused.


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


def test_what_detrex_computes_otherwise_is_said(tmp_path):
    path = str(tmp_path / "a.pth")
    torch.save({"model": random(keys("detrex")["refine"])}, path)
    assert "note: detrex keeps boxes 0.001" in describe(examine(path))


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


def test_a_backbone_that_they_do_not_have_is_refused(tmp_path):
    here = PROJECTS["official"].to_here(official("refine"))
    with pytest.raises(InputError, match="has no place for 1 of .*backbone.network.x"):
        PROJECTS["official"].from_here({**here, "backbone.network.x": torch.zeros(1)}, True)


def test_files_of_a_folder_run_no_code(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "deformable_detr"}')
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        pickle.dump({"model.level_embed": Evil(tmp_path / "marker")}, file)
    with pytest.raises(InputError, match="pytorch_model.bin: .*tensors and plain data only"):
        examine(str(tmp_path))
    assert not (tmp_path / "marker").exists()
