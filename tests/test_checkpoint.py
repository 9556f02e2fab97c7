"""Checkpoints: read as data, refused with a reason unless they fit."""

import logging
import os
import pickle
import random

import pytest
import torch
from torchvision.models import resnet50

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.toolbox import build_model

from .conftest import VARIANTS, small_cfg
from .test_convert import official_file

NODE = "MODEL.DETR."
KINDS = [v for v in VARIANTS if v != "single_scale_dc5"]  # its tensors are those of single_scale


def build(*opts, config="deformable_detr/deformable_detr_R_50_50ep.yaml", seed=0):
    torch.manual_seed(seed)
    return build_model(small_cfg(*opts, config=config))


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(state, model):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of one small model per kind."""
    folder = tmp_path_factory.mktemp("saved")
    for kind in KINDS:
        Checkpointer(build(config=VARIANTS[kind], seed=1), str(folder)).save(kind)
    return {kind: str(folder / f"{kind}.pth") for kind in KINDS}


def check_refused(model, path, *words, needs_head=False):
    """The message names the file and every word, and the model is as before."""
    before = snapshot(model)
    with pytest.raises(ValueError) as error:
        Checkpointer(model, needs_head=needs_head).load(str(path))
    for word in (os.path.basename(path), *words):
        assert word in str(error.value), error.value
    assert same(before, model)


def test_round_trip(tmp_path):
    """Weights, further state and extra values come back; the file holds plain data."""

    class Counter:
        def __init__(self, value):
            self.value = value

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    model = build(seed=1)
    Checkpointer(model, str(tmp_path), trainer=Counter(7)).save("model_0000041", iteration=41)
    copy, counter = build(seed=2), Counter(0)
    checkpointer = Checkpointer(copy, str(tmp_path), trainer=counter)
    assert not same(snapshot(model), copy)
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000041.pth")
    extra = checkpointer.resume_or_load("", resume=True)
    assert same(snapshot(model), copy) and counter.value == 7 and extra["iteration"] == 41
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000041.pth"]


# Files that are not trusted.


class Evil:
    """Unpickled, it runs a command."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Custom:
    """Harmless, but not data."""


def evil_files(folder, marker):
    evil = Evil(marker)
    nested = {"model": {"a": [(1, {"b": [{"c": evil}]})]}, "args": torch.zeros(2)}
    for name, content in (("top", evil), ("nested", nested)):
        with open(folder / f"{name}.pkl", "wb") as f:
            pickle.dump(content, f)
        torch.save(content, folder / f"{name}.pth")
        torch.save(content, folder / f"{name}_old.pth", _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "name", ["top.pkl", "top.pth", "top_old.pth", "nested.pkl", "nested.pth", "nested_old.pth"]
)
def test_files_run_no_code(tmp_path, name):
    """Neither when training starts, nor when converting; the message says what was wanted."""
    marker = tmp_path / "marker"
    evil_files(tmp_path, marker)
    path = str(tmp_path / name)
    words = ["tensors and plain data only", "system", "state_dict()"]
    check_refused(build(), path, *words)
    with pytest.raises(ValueError):
        convert_file(path, str(tmp_path / "out.pth"))
    assert not marker.exists() and not (tmp_path / "out.pth").exists()
    if name.endswith(".pkl"):  # the file is dangerous indeed
        with open(path, "rb") as f:
            pickle.load(f)
        assert marker.exists()


def test_custom_classes_are_refused(tmp_path):
    torch.save({"model": Custom()}, tmp_path / "custom.pth")
    check_refused(build(), tmp_path / "custom.pth", "Custom", "state_dict()")


def test_damaged_files_are_refused(tmp_path, saved):
    """Empty, truncated, random, or another format: damaged, says the message."""
    with open(saved["multi_scale"], "rb") as f:
        data = f.read()
    contents = [b"", data[:1], data[:100], data[: len(data) // 2], data[:-1], b"\x89PNG\r\n\x1a\n"]
    contents += [random.Random(i).randbytes(1 + 37 * i) for i in range(40)]
    # The byte "c" alone does ask for a class.
    contents += [bytes([first]) * 9 for first in range(256) if first != ord("c")]
    model, path = build(), tmp_path / "damaged.pth"
    before = snapshot(model)
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged.pth") as error:
            Checkpointer(model).load(str(path))
        assert "damaged or incomplete" in str(error.value), (content[:20], error.value)
    assert same(before, model)


@pytest.mark.parametrize(
    "content, words",
    [
        ([1, 2], ["must be a dict", "list"]),
        (torch.zeros(3), ["must be a dict", "Tensor"]),
        ({"model": [1, 2]}, ["state dict"]),
        ({"model": {"head.x": 3}}, ["tensors only"]),
        ({"model": {5: torch.zeros(1)}}, ["tensors only"]),
        ({k: {"x": torch.zeros(1)} for k in ("student", "teacher")}, ["2 state dicts", "teacher"]),
        ({}, ["does not fit"]),
        ({"model": {}}, ["does not fit"]),
    ],
)
def test_other_contents_are_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "other.pth")
    check_refused(build(), tmp_path / "other.pth", *words)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_none_are_refused(tmp_path, saved, value):
    """Of the model alone, and of weights of any type; before any of them is loaded."""
    checkpoint = torch.load(saved["multi_scale"], weights_only=True)
    state = checkpoint["model"]
    name = "head.transformer.level_embed"
    state[name] = state[name].half()
    state[name][1, 2] = value
    torch.save(checkpoint, tmp_path / "broken.pth")
    check_refused(build(), tmp_path / "broken.pth", f"1 of {len(state)} tensors, the first {name}")


def test_values_that_are_no_tensors_are_refused(tmp_path):
    state = {key: 0 for key in build().state_dict()}
    torch.save({"model": state}, tmp_path / "numbers.pth")
    check_refused(build(), tmp_path / "numbers.pth", "tensors only")


def test_a_missing_file_is_named(tmp_path):
    before = snapshot(model := build())
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS") as error:
        Checkpointer(model).load(str(tmp_path / "nowhere.pth"))
    assert "nowhere.pth" in str(error.value) and same(before, model)


# Checkpoints of other models.


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_other_variants_are_refused(saved, ours, theirs):
    """Each message names the config keys that differ."""
    model = build(config=VARIANTS[ours])
    if ours == theirs:
        Checkpointer(model, needs_head=True).load(saved[theirs])
        assert not same(snapshot(build(config=VARIANTS[ours])), model)
        return
    refines, two_stage = (
        {k: k in kinds for k in KINDS} for kinds in (("refine", "two_stage"), ("two_stage",))
    )
    words = ["does not fit this config", "MODEL.DETR."]
    if refines[ours] != refines[theirs]:
        words += [f"WITH_BOX_REFINE {refines[theirs]}, the config has {refines[ours]}"]
    elif two_stage[ours] != two_stage[theirs]:
        words += [f"TWO_STAGE {two_stage[theirs]}, the config has {two_stage[ours]}"]
    else:
        levels = {k: 1 if k == "single_scale" else 4 for k in KINDS}
        words += [f"NUM_FEATURE_LEVELS {levels[theirs]}, the config has {levels[ours]}"]
    check_refused(model, saved[theirs], *words)


@pytest.mark.parametrize(
    "key, value, theirs",
    [
        ("NUM_CLASSES", 4, 3),
        ("NUM_QUERIES", 13, 12),
        ("ENC_LAYERS", 3, 2),
        ("ENC_LAYERS", 1, 2),
        ("DEC_LAYERS", 3, 2),
        ("DEC_LAYERS", 1, 2),
        ("NUM_FEATURE_LEVELS", 5, 4),
        ("HIDDEN_DIM", 64, 32),
        ("DIM_FEEDFORWARD", 48, 64),
    ],
)
def test_other_sizes_are_refused(saved, key, value, theirs):
    model = build(NODE + key, value)
    check_refused(model, saved["multi_scale"], f"{key} {theirs}, the config has {value}")


@pytest.mark.parametrize(
    "opts, word",
    [
        ([NODE + "ENC_N_POINTS", 3], "another shape"),
        ([NODE + "DEC_N_POINTS", 3], "attention_weights"),
        (["MODEL.RESNETS.DEPTH", 101], "it has a ResNet-50, the config MODEL.RESNETS.DEPTH 101"),
        (["MODEL.RESNETS.WIDTH_PER_GROUP", 16], "backbone."),
    ],
)
def test_what_no_key_explains_is_listed(saved, opts, word):
    """Tensors are named, with both shapes."""
    check_refused(build(*opts), saved["multi_scale"], word)


def test_tensors_that_lack_or_are_too_many_are_named(tmp_path, saved):
    checkpoint = torch.load(saved["multi_scale"], weights_only=True)
    state = checkpoint["model"]
    torch.save({"model": {**state, "head.extra.weight": torch.zeros(1)}}, tmp_path / "more.pth")
    check_refused(build(), tmp_path / "more.pth", "head.extra.weight")
    del state["head.input_proj.0.0.weight"]
    torch.save({"model": state}, tmp_path / "less.pth")
    check_refused(build(), tmp_path / "less.pth", "head.input_proj.0.0.weight")


def test_official_checkpoints_of_other_sizes_are_refused(tmp_path):
    official_file(tmp_path / "r50.pth", "multi_scale")
    words = ["official code", "NUM_CLASSES 91, the config has 3", "ENC_LAYERS 6"]
    check_refused(build(), tmp_path / "r50.pth", *words)
    model = build(config=VARIANTS["refine"])
    check_refused(model, tmp_path / "r50.pth", "WITH_BOX_REFINE False, the config has True")


def test_loading_works_after_a_refusal(saved):
    """The same checkpointer takes a better file."""
    model = build()
    checkpointer = Checkpointer(model)
    with pytest.raises(ValueError):
        checkpointer.load(saved["two_stage"])
    checkpointer.load(saved["multi_scale"])
    assert same(torch.load(saved["multi_scale"], weights_only=True)["model"], model)


# Weights of the backbone alone.


@pytest.mark.parametrize("form", ["ours", "torchvision"])
def test_backbone_weights_are_for_training(tmp_path, caplog, form):
    """Taken as MODEL.WEIGHTS of a training; refused for evaluation, with the remedy."""
    if form == "ours":
        model, other = build(), build(seed=1)
        state = {k: v for k, v in other.state_dict().items() if k.startswith("backbone.")}
    else:
        full = ["STEM_OUT_CHANNELS", 64, "RES2_OUT_CHANNELS", 256, "WIDTH_PER_GROUP", 64]
        full[::2] = [f"MODEL.RESNETS.{key}" for key in full[::2]]
        model, state = build(*full), resnet50(weights=None).state_dict()
    path = tmp_path / "backbone.pth"
    torch.save(state, path)
    check_refused(model, path, "backbone", "model_final.pth", "MODEL.WEIGHTS", needs_head=True)
    head = {k: v.clone() for k, v in model.head.state_dict().items()}
    with caplog.at_level(logging.INFO):
        Checkpointer(model).load(str(path))
    if form == "ours":
        assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    else:
        ours, theirs = model.backbone.res4[2].conv2.weight, state["layer3.2.conv2.weight"]
        assert torch.equal(ours, theirs)
    assert same(head, model.head)
    incomplete = dict(list(state.items())[:-9])
    torch.save(incomplete, path)
    check_refused(model, path, "missing")


def test_evaluation_needs_weights():
    with pytest.raises(ValueError, match="MODEL.WEIGHTS"):
        Checkpointer(build(), needs_head=True).load("")
    assert Checkpointer(build()).load("") == {}
