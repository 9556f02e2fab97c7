"""The best checkpoint stays, with what it is written beside it; of the periodic ones the newest."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.engine.kept_checkpoints import BestCheckpoint, KeepNewest
from detectron2_ddetr.errors import InputError

from .test_checkpoint import build
from .test_training import run, shapes  # noqa: F401

NAMES = ["a", "b", "c"]


@pytest.fixture
def make(tmp_path):
    """A function that makes the hook, as a trainer would, with its model."""
    model = build()

    def hook():
        best = BestCheckpoint(Checkpointer(model, str(tmp_path), class_names=NAMES), "val")
        best.trainer = SimpleNamespace(iter=0)
        return best, model

    return hook


def evaluate(best, model, iteration, ap):
    """The weights are the number of the iteration, to tell them apart."""
    best.trainer.iter = iteration
    torch.nn.init.constant_(model.head.class_embed[0].bias, iteration)
    best.update({"bbox": {"AP": ap}} if ap is not None else {})


def kept(folder):
    data = torch.load(folder / "model_best.pth", weights_only=True)
    (iteration,) = set(data["model"]["head.class_embed.0.bias"].tolist())
    content = json.loads((folder / "model_best.json").read_text())
    assert content["iteration"] == data["iteration"] == iteration
    assert data["class_names"] == content["classes"] == NAMES
    return iteration, content["value"]


def test_the_best_evaluation_stays(make, tmp_path):
    best, model = make()
    for iteration, (ap, expected) in enumerate(
        [(None, None), (1.5, (1, 1.5)), (3.0, (2, 3.0)), (2.0, (2, 3.0)), (3.0, (2, 3.0))]
    ):
        evaluate(best, model, iteration, ap)
        if expected is None:
            assert not list(tmp_path.glob("model_best*"))
        else:
            assert kept(tmp_path) == expected
    assert not (tmp_path / "last_checkpoint").exists()  # a training goes on from its end
    best, model = make()
    best.resume()
    evaluate(best, model, 7, 2.9)
    assert kept(tmp_path) == (2, 3.0)
    evaluate(best, model, 8, 3.1)
    assert kept(tmp_path) == (8, 3.1)


def test_of_several_data_sets_the_named_one_counts(make, tmp_path):
    best, model = make()
    for iteration, (val, other) in enumerate([(1.0, 9.0), (2.0, 1.0), (1.5, 10.0)]):
        best.trainer.iter = iteration
        torch.nn.init.constant_(model.head.class_embed[0].bias, iteration)
        best.update({"other": {"bbox": {"AP": other}}, "val": {"bbox": {"AP": val}}})
    assert kept(tmp_path) == (1, 2.0)


def test_a_data_set_that_is_called_like_a_task(make, tmp_path):
    best, model = make()
    best.data = "bbox"
    evaluate(best, model, 3, 1.5)
    assert kept(tmp_path) == (3, 1.5)
    best.update({"bbox": {}, "other": {"bbox": {"AP": 9.0}}})
    assert kept(tmp_path) == (3, 1.5)


@pytest.mark.parametrize("text", ["{", "[]", '{"value": "x"}', "{}"])
def test_a_json_that_is_none(make, tmp_path, text):
    (tmp_path / "model_best.json").write_text(text)
    with pytest.raises(InputError, match="model_best.json: cannot be read.*remove it"):
        make()[0].resume()


def test_the_newest_stay(tmp_path):
    names = [f"model_{i:07d}.pth" for i in (1, 3, 5, 11)]
    others = ["model_final.pth", "model_initial.pth", "model_best.pth", "model_3.pth"]
    for name in names + others:
        (tmp_path / name).touch()
    hook = KeepNewest(str(tmp_path), period=4, number=2)
    for iteration, expected in ((10, names), (11, names[2:])):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.after_step()
        found = sorted(path.name for path in tmp_path.iterdir())
        assert found == sorted(expected + others)


def test_later_ones_do_not_count(tmp_path):
    """A training that was sent back keeps what it has just saved, and writes over the others."""
    names = [f"model_{i:07d}.pth" for i in (3, 7, 11, 15)]
    for name in names:
        (tmp_path / name).touch()
    hook = KeepNewest(str(tmp_path), period=4, number=1)
    for iteration, expected in ((3, names), (7, names[1:]), (11, names[2:])):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.after_step()
        assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_the_best_on_other_data_does_not_count(make, tmp_path):
    best, model = make()
    evaluate(best, model, 1, 50.0)
    best, model = make()
    best.data = "other"
    best.resume()
    assert best.iteration is None
    evaluate(best, model, 2, 20.0)
    assert kept(tmp_path) == (2, 20.0)


def test_in_a_training(shapes, tmp_path):  # noqa: F811
    """Evaluating the best weights gives the AP that is written beside them."""
    opts = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINTS_TO_KEEP", 1]
    run(shapes, tmp_path, opts=opts)
    content = json.loads((tmp_path / "model_best.json").read_text())
    assert content["data"] == "shapes" and content["classes"] == ["lying", "standing"]
    assert content["category_ids"] == [1, 2]
    assert load_checkpoint_file(str(tmp_path / "model_final.pth"))["category_ids"] == [1, 2]
    assert [p.name for p in tmp_path.glob("model_0*")] == ["model_0000007.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert content["value"] == max(row["bbox/AP"] for row in rows if "bbox/AP" in row)
    weights = ["MODEL.WEIGHTS", tmp_path / "model_best.pth"]
    log = run(shapes, tmp_path / "eval", "--eval-only", opts=weights)
    said = float(re.findall(r"copypaste: (\d[\d.]*),", log)[-1])
    assert said == pytest.approx(content["value"], abs=1e-4)
