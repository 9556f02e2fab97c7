"""A training starts from weights of other classes, and of another number of queries."""

import logging

import pytest
import torch

from detectron2_ddetr import Checkpointer, load_config
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from .conftest import CONFIGS, VARIANTS
from .test_checkpoint import build, same, snapshot
from .test_class_names import NAMES  # red, зелёный, blue, light
from .test_convert import official_zeros

NODE = "MODEL.DETR."
#: The first of the file's second row, the second new, the third in other letters.
OTHERS = ["зелёный", "yellow", " Red", "green"]


@pytest.fixture(params=["multi_scale", "refine", "two_stage"])
def kind(request):
    return VARIANTS[request.param]


def start(path, *opts, config, names, **kwargs):
    """(initial state, state after loading) of a model that starts from `path`."""
    opts = [NODE + "NUM_CLASSES", len(names), *opts]
    model = build(*opts, config=config, seed=2)
    before = snapshot(model)
    Checkpointer(model, class_names=names, **kwargs).resume_or_load(path, resume=False)
    return before, snapshot(model)


@pytest.fixture
def saved(tmp_path, kind):
    """A file of three classes, and its state."""
    torch.manual_seed(3)
    model = build(config=kind, seed=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    Checkpointer(model, str(tmp_path), class_names=NAMES).save("model_final")
    return str(tmp_path / "model_final.pth"), snapshot(model)


def test_rows_go_by_name(saved, kind, caplog):
    path, state = saved
    with caplog.at_level(logging.INFO):
        before, after = start(path, config=kind, names=OTHERS)
    encoder = 2 if kind == VARIANTS["two_stage"] else None
    for key, value in after.items():
        if not key.startswith("head.class_embed."):
            assert torch.equal(value, state[key]), key
            continue
        if key.startswith(f"head.class_embed.{encoder}."):
            expected = [state[key][0], state[key][1], state[key][2], before[key][3]]
        else:
            expected = [state[key][1], before[key][1], state[key][0], before[key][3]]
        assert torch.equal(value, torch.stack(expected)), key
    assert "by name зелёный,  Red; new yellow, green; of the file's, 1 are not used" in caplog.text
    lines = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if line.strip()}
    mapped = sum(key.startswith("head.class_embed") for key in state)
    assert lines["head.class_embed"] == ["0", str(mapped), "0"]
    backbone = sum(key.startswith("backbone") for key in state)
    assert lines["backbone"] == [str(backbone), "0", "0"]


@pytest.mark.parametrize("number", [5, 12, 20])
@pytest.mark.parametrize("kind", ["refine"], indirect=True)
def test_queries(saved, kind, number, caplog):
    path, state = saved
    with caplog.at_level(logging.INFO):
        before, after = start(path, NODE + "NUM_QUERIES", number, config=kind, names=NAMES)
    key = "head.query_embed.weight"
    expected = torch.cat((state[key][:number], before[key][12:]))
    assert torch.equal(after[key], expected) and len(expected) == number
    assert {5: "the first 5 of 12", 12: "", 20: "12, and 8 new ones"}[number] in caplog.text


@pytest.mark.parametrize("kind", ["refine"], indirect=True)
def test_without_names_rows_go_by_number_or_start_anew(tmp_path, kind):
    model = build(config=kind, seed=1)
    torch.nn.init.normal_(model.head.class_embed[0].bias)
    Checkpointer(model, str(tmp_path)).save("unnamed")
    path = str(tmp_path / "unnamed.pth")
    _, after = start(path, config=kind, names=NAMES)
    assert same(after, model)
    before, after = start(path, config=kind, names=["red"])
    assert torch.equal(after["head.class_embed.0.bias"], before["head.class_embed.0.bias"])
    assert torch.equal(after["head.bbox_embed.0.layers.0.weight"], model.state_dict()[
        "head.bbox_embed.0.layers.0.weight"])  # fmt: skip


@pytest.mark.parametrize("kind", ["refine"], indirect=True)
def test_to_evaluate_or_resume_they_must_fit(saved, kind, tmp_path):
    path, _ = saved
    model = build(NODE + "NUM_CLASSES", 4, config=kind)
    before = snapshot(model)
    for checkpointer in (
        Checkpointer(model, class_names=OTHERS, needs_head=True),
        Checkpointer(model, str(tmp_path), class_names=OTHERS),
    ):
        with pytest.raises(InputError, match="model_final.pth"):
            checkpointer.resume_or_load(path, resume=True)
    assert same(before, model)


@pytest.mark.parametrize("kind", ["refine"], indirect=True)
def test_what_does_not_fit_is_still_refused(saved, kind):
    with pytest.raises(InputError, match="ENC_LAYERS 2, the config has 1"):
        start(saved[0], NODE + "ENC_LAYERS", 1, config=kind, names=OTHERS)


@pytest.mark.parametrize("names, rows", [(["dog", "Person", "cell"], [18, 1, None])])
def test_official_weights_know_coco_s_classes(tmp_path, names, rows):
    """Their rows are COCO's category ids: 1 is a person, 18 a dog."""
    weights = official_zeros("multi_scale")
    for i in range(6):
        weights[f"class_embed.{i}.bias"] = torch.arange(91.0)
    torch.save({"model": weights}, tmp_path / "official.pth")
    opts = ["MODEL.DEVICE", "cpu", NODE + "NUM_CLASSES", 3]
    model = build_model(load_config(str(CONFIGS / VARIANTS["multi_scale"]), opts))
    Checkpointer(model, class_names=names).resume_or_load(
        str(tmp_path / "official.pth"), resume=False
    )
    for head in model.head.class_embed:
        expected = [-4.59512 if row is None else row for row in rows]  # new: a score of 0.01
        assert head.bias.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["refine"], indirect=True)
def test_a_file_with_more_names_than_rows(saved, kind, tmp_path):
    data = torch.load(saved[0], weights_only=True)
    torch.save(data | {"class_names": [*NAMES, "black"]}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="3 class rows, but 4 class names"):
        start(str(tmp_path / "odd.pth"), config=kind, names=["black"])
