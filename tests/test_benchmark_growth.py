"""tools/benchmark_growth.py and benchmark_page.py: powers, figures, and a page that is repeated."""

import csv
import importlib.util
import re
import sys

import cv2
import pytest

from detectron2_ddetr.measuring import power
from detectron2_ddetr.visualization.growth import draw_growth

from .conftest import ROOT
from .fork_server import fork_ranks
from .test_benchmark import COMMON, SMALL, rows


@pytest.fixture
def tool(monkeypatch):
    """Of a name, as a module."""
    monkeypatch.syspath_prepend(ROOT / "tools")

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_power(exponent):
    sizes = [1.0, 4.0, 64.0]
    assert power(sizes, [7 * x**exponent for x in sizes]) == pytest.approx(exponent)


@pytest.mark.parametrize("name", ["boxes", "ranks"])
def test_growth(tool, name, tmp_path, monkeypatch, capsys):
    """A row for each value, the power of what the rows say, and a figure."""
    growth = tool("benchmark_growth")
    fork_ranks(monkeypatch)
    what = growth.AXES[name][0]
    monkeypatch.setitem(growth.AXES, name, (what, (1, 2)))
    growth.main([
        "--config-file", COMMON[1], "--output", str(tmp_path), "--over", name, "--width", "64",
        "--repeat", "1", "--threads", "1", *SMALL,
    ])  # fmt: skip
    text = capsys.readouterr().out
    table = [row for row in rows(text) if row[0] == what]
    assert [row[1:3] for row in table] == [
        [value, kind] for value in "12" for kind in ("training step", "inference")
    ]
    seconds = [float(row[3].split()[0]) for row in table if row[2] == "training step"]
    said = float(re.search(r"training step (-?\d+\.\d+) \(time\)", text)[1])
    assert said == pytest.approx(power([1, 2], seconds), abs=0.1)
    assert cv2.imread(str(tmp_path / f"{name}.png")).shape[1] > 1000


def test_the_curves_are_in_the_figure(tmp_path):
    """Two figures that differ in one curve alone differ."""
    pictures = []
    for factor in (1, 3):
        curves = {"a": ([1, 2, 4], [5, 5, 5]), "b": ([2, 2 * factor, 8], [5, 6, 7])}
        draw_growth("queries", [1, 2, 4], curves, "title", str(tmp_path / "x.png"))
        pictures.append(cv2.imread(str(tmp_path / "x.png")))
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()


PAGE = r"""
```sh
python -c "print('| a |')"   # a comment
python -c \
    "raise SystemExit(3)"
```

```
python -c "print('not run')"
```

```sh
A=b python -c "import os, sys; print(sys.argv[1], os.environ['A'] * 3)" output/benchmark/x
```
"""


def test_the_page_is_repeated(tool, tmp_path, capfd):
    """All commands of its sh blocks, also after one that fails, which is named in the end."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(SystemExit, match="these failed:\n.*SystemExit"):
        tool("benchmark_page").main(["--page", str(page), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "page.md").read_text()
    assert "| a |" in text and str(tmp_path / "out" / "x") in text and "not run" not in text
    assert "bbb" in text


def test_all_commands_of_the_page_are_tools(tool):
    commands = tool("benchmark_page").commands((ROOT / "BENCHMARKS.md").read_text())
    for command in commands:
        words = command.split()
        assert (ROOT / words[words.index("python") + 1]).is_file(), command
    assert any("benchmark_growth" in c for c in commands)
    assert any("benchmark_peers:compiled" in c for c in commands)


@pytest.mark.parametrize(
    "name",
    [
        "as_trained",
        "int8",
        "linear_of_pytorch",
        "frozen_layers_of_batches",
        "tokens_projected_first",
        "all_boxes_learn",
        "sums_and_norms_of_pytorch",
    ],
)
def test_peers(tool, name, tmp_path, capsys):
    """Other forms of the model run on the tensors of ours."""
    tool("benchmark_peers")
    arguments = [*COMMON, "--peer", f"benchmark_peers:{name}", "--csv", str(tmp_path)]
    tool("benchmark").main([*arguments, *SMALL])
    (path,) = tmp_path.iterdir()
    assert all(float(row["ours / peer, median"]) > 0 for row in csv.DictReader(path.open()))
