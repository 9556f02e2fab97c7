"""`ddetr export`: the file, the report and what it prints, on images that are named."""

import json

import pytest

from detectron2_ddetr import cli
from detectron2_ddetr.evaluate import evaluate

from .conftest import DATA
from .test_cli import catalogs, loggers  # noqa: F401  (fixtures for each test)

CELLS = sorted(map(str, (DATA / "val").glob("*.jpg")))[:3]
WEIGHTS = "package://detectron2_ddetr/model_zoo/weights/quick_start.pth"
RUN = ["--config-file", "quick_start.yaml", "--weights", WEIGHTS]


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch, catalogs):  # noqa: F811
    """Where what is written goes."""
    monkeypatch.chdir(tmp_path)


def truth_of_cells(tmp_path):
    """The annotations of three images alone."""
    truth = json.loads((DATA / "annotations" / "instances_val.json").read_text())
    names = {path.rpartition("/")[2] for path in CELLS}
    truth["images"] = [image for image in truth["images"] if image["file_name"] in names]
    ids = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return str(path)


def test_truth(tmp_path, capsys):
    """The AP before and after is the evaluator's of what `ddetr predict` writes for the images."""
    truth = truth_of_cells(tmp_path)
    words = ["--format", "torchscript", "--output", "cells.ts", "--truth", truth]
    cli.main(["export", *CELLS, *RUN, *words])
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "cells.ts.json").read_text())
    assert report["check"]["images"] == 3 and report["check"]["share_within_tolerance"] == 1
    assert [row["name"] for row in report["classes"]] == ["RBC", "WBC", "Platelets"]
    cli.main(["predict", *CELLS, *RUN, "--json", "found.json", "--ids-of", truth])
    expected = evaluate("found.json", truth).summary
    for figures in report["ap"].values():
        for name, value in expected.items():
            assert figures.get(name) == pytest.approx(value, abs=1e-6)
    for when in ("before", "after"):
        assert f"{when}: AP {expected['AP']:.2f}  AP50 {expected['AP50']:.2f}" in said
    assert "Wrote cells.ts and cells.ts.json" in said


def test_refusals(tmp_path):
    """Ground truth without images, and a number of images that is none."""
    words = ["export", *RUN, "--format", "torchscript", "--output", "cells.ts"]
    for more, said in (
        (["--truth", truth_of_cells(tmp_path)], "name them"),
        (["--num-images", "0"], "--num-images is 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, *more])
        assert said in str(stop.value.code)
    assert not (tmp_path / "cells.ts").exists()
