"""Weights from elsewhere: what cannot be fetched is named, with what to do."""

import pytest

from detectron2_ddetr import Checkpointer

from .test_checkpoint import build, same, saved, snapshot  # noqa: F401


@pytest.mark.parametrize(
    "address, words",
    [
        ("http://127.0.0.1:9/r50.pth", "cannot be downloaded.*refused.*MODEL.WEIGHTS to the copy"),
        ("catalog://nothing", "MODEL.WEIGHTS to the copy"),
        ("catalog://ImageNetPretrained/none", "MODEL.WEIGHTS to the copy"),
        ("nowhere://r50.pth", "such addresses.*MODEL.WEIGHTS to the copy"),
    ],
)
def test_what_cannot_be_downloaded_is_named(address, words):
    before = snapshot(model := build())
    with pytest.raises(FileNotFoundError, match=f"{address}.*{words}"):
        Checkpointer(model).load(address)
    assert same(before, model)


def test_files_of_the_model_zoo_have_an_address(saved, monkeypatch):  # noqa: F811
    """With either toolbox; the question mark begins what detectron2 asks for."""
    checkpointer, asked = Checkpointer(build()), []

    def download(address, **_):
        asked.append(address)
        return saved["multi_scale"]

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", download)
    checkpointer.load("detectron2://a/R-50.pkl?matching_heuristics=True")
    assert asked[0] == "https://dl.fbaipublicfiles.com/detectron2/a/R-50.pkl"
