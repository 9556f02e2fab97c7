"""What only training needs is left out on request, and not missed in a checkpoint for inference."""

import logging

import pytest
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine, fitting_config
from detectron2_ddetr.cli import main
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from . import family_cases as family
from .test_checkpoint import snapshot
from .test_convert import official_zeros

BOOK, QUERIES = "head.denoising.label_enc.weight", "head.query_embed.weight"
#: The words for what each system has in training only, and the config of what is left.
SYSTEMS = {
    "hdetr": ("one-to-many queries", "deformable_detr_R_50_two_stage_tricks_12ep.yaml"),
    "dn_dab_deformable": ("label embedding", "dn_deformable_detr_R_50_50ep.yaml"),
    "dino": ("label embedding", "dino_4scale_R_50_12ep.yaml"),
}


class Files:
    """The authors' weights of a system, whole and for inference."""

    def __init__(self, system, folder):
        self.system, self.case = system, family.load(f"model_{system}")
        self.words, self.config = SYSTEMS[system]
        self.whole, self.less = str(folder / "whole.pth"), str(folder / "less.pth")
        torch.save({"model": family.official_state_dict(system, self.case)}, self.whole)
        self.detecting = self.case["pred_logits"].shape[1]
        count = self.detecting if system == "hdetr" else None
        convert_file(self.whole, self.less, inference_only=True, num_queries=count, classes="same")

    def built(self, seed=0):
        torch.manual_seed(seed)
        return build_model(family.config(self.system, self.case))


@pytest.fixture(scope="module", params=SYSTEMS)
def files(request, tmp_path_factory):
    return Files(request.param, tmp_path_factory.mktemp(request.param))


def test_what_is_left(files):
    """All but the label embedding, or the queries after those that detect; a model of its own."""
    whole, less = examine(files.whole).tensors, torch.load(files.less, weights_only=True)["model"]
    if files.system == "hdetr":
        assert less.keys() == whole.keys()
        assert len(less[QUERIES]) == files.detecting < len(whole[QUERIES])
    else:
        assert less.keys() == whole.keys() - {BOOK}
    for key, value in less.items():
        assert torch.equal(value, whole[key][: len(value)]), key
    found = examine(files.less)
    assert fitting_config(found)[0] == files.config
    assert files.config in describe(found)


@pytest.mark.parametrize("by_file", [True, False], ids=["Checkpointer", "load_state_dict"])
def test_detections_are_the_same(files, by_file, caplog):
    """To the bit, in the config that trains; one line says what is missing."""
    expected, model = files.built(seed=1), files.built(seed=2)
    Checkpointer(expected).load(files.whole)
    before = snapshot(model)
    with caplog.at_level(logging.INFO):
        if by_file:
            Checkpointer(model, needs_head=True).load(files.less)
        else:
            missing = model.load_state_dict(torch.load(files.less, weights_only=True)["model"])
            assert not missing.missing_keys and not missing.unexpected_keys
    said = [line for line in caplog.messages if "which only training needs" in line]
    assert len(said) == 1 and files.words in said[0]
    for (key, value), other in zip(model.state_dict().items(), expected.state_dict().values()):
        if key == BOOK:
            assert torch.equal(value, before[key])
        elif files.system == "hdetr" and key == QUERIES:
            assert torch.equal(value[: files.detecting], other[: files.detecting])
            assert torch.equal(value[files.detecting :], before[key][files.detecting :])
        else:
            assert torch.equal(value, other), key
    batch = [{"image": torch.full((3, 64, 96), 100, dtype=torch.uint8)}]
    with torch.no_grad():
        (a,), (b,) = model.eval()(batch), expected.eval()(batch)
    assert torch.equal(a["instances"].scores, b["instances"].scores)
    assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_a_training_starts_them_anew(files, caplog):
    model = files.built(seed=3)
    before = snapshot(model)
    names = [f"c{i}" for i in range(model.head.num_classes)]
    with caplog.at_level(logging.INFO):
        Checkpointer(model, class_names=names).resume_or_load(files.less, resume=False)
    (table,) = [line for line in caplog.messages if line.startswith("training starts from")]
    after = snapshot(model)
    if files.system == "hdetr":
        more = len(after[QUERIES]) - files.detecting
        assert f"queries: {files.detecting}, and {more} new ones" in table
        assert torch.equal(after[QUERIES][-more:], before[QUERIES][-more:])
    else:
        (row,) = [line for line in table.splitlines() if line.startswith("head.denoising ")]
        assert row.split() == ["head.denoising", "0", "0", "1"]
        assert torch.equal(after[BOOK], before[BOOK])
        assert sum("which only training needs" in line for line in caplog.messages) == 1


def test_other_tensors_are_still_missed(files):
    """Only what training alone needs may be missing."""
    state = torch.load(files.less, weights_only=True)["model"]
    del state["head.transformer.level_embed"]
    with pytest.raises(RuntimeError, match="level_embed"):
        files.built().load_state_dict(state)


@pytest.mark.parametrize(
    "system, count, words",
    [
        ("dino", 5, "--num-queries is for H-Deformable-DETR"),
        ("hdetr", 10**6, "--num-queries is 1000000, and must be from 1 to "),
        ("hdetr", 0, "--num-queries is 0, and must be from 1 to "),
        ("hdetr of 1800", None, "of its 1800 queries some are .*: give --num-queries, 300"),
    ],
)
def test_numbers_of_queries_that_cannot_be(tmp_path, system, count, words):
    path, system, *more = str(tmp_path / "a.pth"), *system.split(" of ")
    state = family.official_state_dict(system, family.load(f"model_{system}"))
    for number in more:
        state["query_embed.weight"] = torch.zeros(
            int(number), *state["query_embed.weight"].shape[1:]
        )
    torch.save({"model": state}, path)
    with pytest.raises(InputError, match=f"a.pth: {words}"):
        convert_file(path, str(tmp_path / "b.pth"), inference_only=True, num_queries=count)
    assert not (tmp_path / "b.pth").exists()


def test_command_line(tmp_path, capsys, caplog):
    """Of the base model nothing is left out; it is said."""
    torch.save({"model": official_zeros("refine")}, tmp_path / "a.pth")
    caplog.set_level(logging.INFO)
    main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--inference-only"])
    assert "left out: nothing, all is needed for inference" in capsys.readouterr().out + caplog.text
