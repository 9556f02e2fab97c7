"""What the tutorial and the page on the operator show is run as it stands there."""

import json
import re
import shlex
import shutil

import pytest
import torch

from detectron2_ddetr import cli
from detectron2_ddetr.toolbox import DatasetCatalog, MetadataCatalog

from .conftest import DATA, ROOT
from .test_cli import loggers  # noqa: F401  (a fixture for each test)

#: Two images an update; two iterations, as the page says.
SMALL = ["SOLVER.IMS_PER_BATCH", "2"]


def blocks(page):
    """(language, code) of a page in docs, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The folder of the tutorial, with three images of blood cells in each set."""
    for name in ("train", "val"):
        content = json.loads((DATA / "annotations" / f"instances_{name}.json").read_text())
        (tmp_path / "mine" / name).mkdir(parents=True)
        content["images"] = content["images"][:3]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        for image, new in zip(content["images"], ("a.jpg", "b.jpg", "c.jpg")):
            shutil.copy(DATA / name / image["file_name"], tmp_path / "mine" / name / new)
            image["file_name"] = new
        (tmp_path / "mine" / f"{name}.json").write_text(json.dumps(content))
    shutil.copy(tmp_path / "mine" / "val" / "b.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    before = set(DatasetCatalog)
    yield tmp_path
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def run(page):
    """All blocks, one after the other; Python ones share their names."""
    names = {}
    for language, code in blocks(page):
        code = re.sub(r"\b300\b(?=[ ,])", "2", code)
        if language == "python":
            exec(compile(code, page, "exec"), names)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            assert program == "ddetr"
            cli.main([*words, *SMALL] if words[0] == "train" else words)
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not DATA.exists(), reason="needs datasets/bccd")
def test_tutorial(mine, capsys, monkeypatch):
    names = run("tutorial.md")
    assert {path.name for path in (mine / "output" / "mine").iterdir()} >= {
        "model_final.pth", "predictions.png", "curves.png", "eval", "inspect"
    }  # fmt: skip
    assert names["weights"].sum((-1, -2)).numpy() == pytest.approx(1, abs=1e-4)
    assert len(names["boxes"]) == len(names["scores"]) == len(names["classes"]) > 0
    trained = names["trainer"].model.head.transformer
    assert type(trained).__name__ == "GridTransformer" and names["trainer"].iter == 2
    (grid,) = (code for _, code in blocks("tutorial.md") if "# grid_queries.py" in code)
    assert len(grid.splitlines()) <= 46
    assert re.search(r"query \d+ looks around", capsys.readouterr().out)


def test_the_grid_of_the_tutorial():
    """Points of a square in the order of reading, x before y."""
    names = {}
    (grid,) = (code for _, code in blocks("tutorial.md") if "# grid_queries.py" in code)
    exec(grid.replace("@DETR_TRANSFORMER_REGISTRY.register()", ""), names)
    transformer = names["GridTransformer"](d_model=32, n_heads=4, n_levels=1)
    memory = type("Memory", (), {"tokens": torch.zeros(2, 5, 32)})
    found = transformer.initial_queries(memory, torch.rand(8, 64), None).reference_points
    expected = [[x / 6, y / 6] for y in (1, 3, 5) for x in (1, 3, 5)][:8]
    torch.testing.assert_close(found, torch.tensor([expected] * 2))


@pytest.mark.filterwarnings("ignore")
def test_operator_alone(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    monkeypatch.chdir(tmp_path)
    names = run("operator.md")
    assert names["output"].shape == (1, 7, 32)
    assert (tmp_path / "operator.onnx").stat().st_size > 0
    centres = torch.tensor([[(j + 0.5) / 30, (i + 0.5) / 20] for i in range(2) for j in range(3)])
    weights, places = torch.zeros(1, 6, 8, 2, 4), torch.zeros(1, 6, 8, 2, 4, 2)
    weights[..., 0, 0], places[..., 0, 0, :] = 1, centres[:, None]
    read = names["ms_deform_attn"](names["value"], torch.tensor(names["shapes"]), places, weights)
    cells = [i * 30 + j for i in range(2) for j in range(3)]
    torch.testing.assert_close(read, names["value"][:, cells].flatten(2))


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_tables(path):
    """A blank line in one would leave its last rows as text; rows have as many cells as the head."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()]
        assert len(rows) > 2 and all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in rows[1]), table
        assert {len(row) for row in rows} == {len(rows[0])}, table
