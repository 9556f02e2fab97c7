"""A checkpoint knows the names of its classes, and they are compared with those of the data."""

import pytest
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.checkpoint.class_names import read_class_names
from detectron2_ddetr.errors import InputError

from .test_checkpoint import build, same, snapshot

NAMES = ["red", "зелёный", "blue, light"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a checkpoint with NAMES, and its model."""
    folder, model = tmp_path_factory.mktemp("names"), build(seed=1)
    Checkpointer(model, str(folder), class_names=tuple(NAMES)).save("model_final", iteration=7)
    return str(folder / "model_final.pth"), model


def test_names_are_plain_data(saved):
    path, _ = saved
    assert torch.load(path, weights_only=True)["class_names"] == NAMES
    assert read_class_names(path) == NAMES


def test_checkpoints_without_names_load_as_before(tmp_path):
    Checkpointer(build(), str(tmp_path)).save("old")
    assert read_class_names(str(tmp_path / "old.pth")) is None
    for kwargs in ({}, {"class_names": NAMES}):
        model = build(seed=2)
        Checkpointer(model, needs_head=True, **kwargs).load(str(tmp_path / "old.pth"))
        assert same(snapshot(build()), model)


@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("needs_head", [True, False])
def test_equal_names_or_none_are_fine(saved, names, needs_head):
    """None: a caller that knows no data set."""
    path, saved_model = saved
    model = build(seed=2)
    extra = Checkpointer(model, needs_head=needs_head, class_names=names).load(path)
    assert same(snapshot(saved_model), model)
    assert extra == {"iteration": 7}


OTHERS = {
    "another order": ["зелёный", "red", "blue, light"],
    "other classes": ["red", "зелёный", "yellow"],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("use", ["evaluate", "resume"])
def test_other_names_are_refused(saved, tmp_path, what, use):
    """Both lists are named, and the model is as before."""
    path, model = saved[0], build()
    before = snapshot(model)
    if use == "evaluate":
        checkpointer = Checkpointer(model, needs_head=True, class_names=OTHERS[what])
        arguments = (path, [])
    else:
        Checkpointer(build(seed=1), str(tmp_path), class_names=NAMES).save("model_0000001")
        checkpointer = Checkpointer(model, str(tmp_path), class_names=OTHERS[what])
        arguments = (checkpointer.get_checkpoint_file(),)
    with pytest.raises(InputError) as error:
        checkpointer.load(*arguments)
    for words in (what, ", ".join(NAMES), ", ".join(OTHERS[what]), "order of their ids"):
        assert words in str(error.value)
    assert same(before, model)


@pytest.mark.parametrize("names", ["red", 3, [1, 2, 3], {"a": 1}])
def test_names_that_are_no_list_are_refused(tmp_path, names):
    torch.save({"model": build().state_dict(), "class_names": names}, tmp_path / "odd.pth")
    for read in (read_class_names, Checkpointer(build()).load):
        with pytest.raises(InputError, match="odd.pth.*class_names must be a list"):
            read(str(tmp_path / "odd.pth"))


def test_many_names_are_cut(tmp_path):
    from detectron2_ddetr.checkpoint.class_names import difference_of_names

    names = [f"class {i}" for i in range(80)]
    text = difference_of_names(names, names[:40] + ["tree"] + names[41:])
    assert "80 in all" in text and "from class 40 on" in text and len(text) < 700
    assert "from class 79 on" in difference_of_names(names, names[:79])
