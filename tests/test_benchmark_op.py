"""tools/benchmark_op.py: what is timed agrees, and the costs are those of a calculation by hand."""

import importlib
import re
import sys
import types

import pytest
import torch

from .conftest import ROOT
from .fork_server import python

TINY = ["--levels", "6x8", "3x4", "--repeat", "3", "--turn", "0.002"]


@pytest.fixture
def benchmark_op(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("benchmark_op")


def rows(text):
    table = [row.split("|")[1:-1] for row in text.splitlines() if row[:1] == "|"]
    return [[cell.strip() for cell in row] for row in table if row[0] != "---"]


def spread(cell):
    """Median, least, most."""
    numbers = tuple(map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell).groups()))
    assert numbers[1] <= numbers[0] <= numbers[2]
    return numbers


def test_the_table():
    """As users run it: a row for each entry and other, and the line that explains them."""
    others = ["grid_sample", "fallback"]
    words = [*TINY, "--other", *others, "--batch-size", 2, "--dtype", "bfloat16", "--threads", 1]
    tool = ROOT / "tools" / "benchmark_op.py"
    status, log = python(tool, *words, "--pass", "forward+backward")
    assert status == 0, log
    header, *body = rows(log)
    assert len(body) == 2 * 2
    assert len({tuple(row[1:5]) for row in body}) == len(body)
    for row in body:
        assert len(row) == len(header)
        assert row[0] == "custom: 2 x 60 queries, 60 cells"
        ours, other, ratio = map(spread, row[5:8])
        assert ratio[1] >= 0.98 * other[1] / ours[2]  # three digits are printed
        assert ratio[2] <= 1.02 * other[2] / ours[1]
        roof, share = float(row[12]), float(row[13].removesuffix(" %"))
        expected = 100 * roof / ours[0]  # of three digits each; the share is a whole number
        assert share == pytest.approx(expected, abs=0.5 + 0.02 * expected)
    line = next(line for line in log.splitlines() if line.startswith("3 turns"))
    for part in (torch.__version__, "1 threads", "GB/s", "GFLOP/s", "load", "ours: "):
        assert part in line
    assert "detectron2_ddetr" in log  # the versions
    assert "timing custom, bfloat16, fused, forward+backward, fallback" in log


def test_costs_are_those_calculated_by_hand(benchmark_op, capsys):
    """
    An image of 800 x 1333: S = Q = 22,223, 8 heads of 32 channels, 16 samples of 4 corners.

    22,223 * 8 * 16 = 2,844,544 samples * 256 = 0.728 GFLOP. Values, locations and output 22.76 MB
    each, weights 11.38 MB: 79.6 MB. Backward reads as much, with the gradient of the output in its
    place, and writes three gradients: 136.5 MB.
    """
    benchmark_op.main(["--list", "--shape", "a1", "a", "c300"])
    _, single, double, decoder = rows(capsys.readouterr().out)
    assert single[0] == "a1: 1 x 22223 queries, 22223 cells"
    assert single[1:5] == ["100x167 50x84 25x42 13x21", "2.845 M", "0.728 / 1.46", "79.6 / 137"]
    assert double[3:5] == ["1.46 / 2.91", "159 / 273"]
    assert decoder[0] == "c300: 1 x 300 queries, 8400 cells"

    shape = benchmark_op.SHAPES["a1"]
    both = shape.megabytes("drop-in", "forward+backward", 4)
    assert both - shape.megabytes("drop-in", "forward", 4) == pytest.approx(136.5, abs=0.1)
    # 16 bits: values and output 11.38 MB, offsets 11.38, logits 5.69, float32 references 0.71.
    assert shape.megabytes("fused", "forward", 2) == pytest.approx(40.54, abs=0.01)
    # 300 queries cannot touch all values: 28,800 samples of 4 corners of 128 bytes.
    touched = 28_800 * (4 * 128 + 12) / 1e6 + 300 * 1024 / 1e6
    few = benchmark_op.SHAPES["c300"].megabytes("drop-in", "forward", 4)
    assert few == pytest.approx(min(touched, 8.6016 + 0.3456 + 0.3072))


def test_the_inputs_of_both_entries_mean_the_same(benchmark_op):
    """And an encoder cell looks around itself."""
    shape = benchmark_op.Shape("x", ((6, 8), (3, 4)))
    problem = benchmark_op.make_problem(shape, torch.float32, torch.device("cpu"))
    (value, *drop_in), (_, *fused) = problem.inputs["drop-in"], problem.inputs["fused"]
    results = [
        benchmark_op.our_drop_in(value, problem.levels, *drop_in),
        benchmark_op.our_fused(value, problem.levels, *fused),
    ]
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    centre = torch.tensor([2.5 / 8, 1.5 / 6])  # of row 1, column 2
    torch.testing.assert_close(fused[0][0, 8 + 2], centre.expand(2, 2), atol=1e-3, rtol=0)


def test_scaling(benchmark_op, capsys):
    pixels = [1.0, 10.0, 100.0]
    assert benchmark_op.power(pixels, [3 * x**1.5 for x in pixels]) == pytest.approx(1.5)
    arguments = ["--scaling", "40", "80", "--repeat", "1", "--turn", "0.001"]
    arguments += ["--other", "fallback", "--entry", "fused", "--pass", "forward", "--markdown"]
    benchmark_op.main(arguments)
    text = capsys.readouterr().out
    assert [row[0].split(":")[0] for row in rows(text)[1:]] == ["24x40", "48x80"]
    ours, other = re.search(r"float32, fused, forward, fallback: (\S+) / (\S+)", text).groups()
    first, second = ([spread(cell)[0] for cell in row[5:7]] for row in rows(text)[1:])
    for got, small, large in zip((ours, other), first, second):
        expected = benchmark_op.power([1, 4], [small, large])
        assert float(got) == pytest.approx(expected, abs=0.01)


def test_what_does_not_agree_is_not_timed(benchmark_op, monkeypatch, capsys):
    grid_sample = benchmark_op.OTHERS["grid_sample"]
    wrong = lambda *inputs: 1.01 * grid_sample(*inputs)  # noqa: E731
    monkeypatch.setitem(benchmark_op.OTHERS, "grid_sample", wrong)
    with pytest.raises(SystemExit, match="grid_sample: does not agree.*output"):
        benchmark_op.main([*TINY, "--other", "grid_sample", "--entry", "drop-in"])
    assert len(rows(capsys.readouterr().out)) == 1  # the heading

    ours = [torch.ones(3), torch.ones(3)]
    benchmark_op.check_agreement("x", ours, ours)
    for other in (1.1 * ours[1], torch.full((3,), float("nan"))):
        with pytest.raises(SystemExit, match="x: does not agree.*gradient 1"):
            benchmark_op.check_agreement("x", [ours[0], other], ours)


def test_the_official_operator_is_called_as_its_authors_do(benchmark_op, monkeypatch):
    """With a stand-in of the same signatures, since it needs a GPU."""
    official = types.ModuleType("MultiScaleDeformableAttention")

    def forward(value, shapes, starts, locations, attention, step):
        assert step == 64 and starts.tolist() == [0, 48]
        levels = types.SimpleNamespace(sizes=shapes.tolist())
        return benchmark_op.OTHERS["grid_sample"](value, levels, locations, attention)

    def backward(value, shapes, starts, locations, attention, grad_output, step):
        inputs = [x.detach().requires_grad_() for x in (value, locations, attention)]
        with torch.enable_grad():
            output = forward(inputs[0], shapes, starts, *inputs[1:], step)
        return list(torch.autograd.grad(output, inputs, grad_output))

    official.ms_deform_attn_forward, official.ms_deform_attn_backward = forward, backward
    monkeypatch.setitem(sys.modules, official.__name__, official)
    shape = benchmark_op.Shape("x", ((6, 8), (3, 4)), queries=5, batch=2)
    problem = benchmark_op.make_problem(shape, torch.float32, torch.device("cpu"))
    core = benchmark_op.OTHERS["official-cuda"]
    for entry, theirs, ours in (
        ("drop-in", core, benchmark_op.our_drop_in),
        ("fused", benchmark_op.after_elementwise(core), benchmark_op.our_fused),
    ):
        calls = [
            benchmark_op.one_call(function, problem, entry, "forward+backward", True)()
            for function in (theirs, ours)
        ]
        benchmark_op.check_agreement(entry, *calls)
        assert len(calls[0]) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shape", "z"], "invalid choice: 'z'"),
        (["--levels", "8"], "'8' is not HEIGHTxWIDTH"),
        (["--levels", "8x0"], "'8x0' is not HEIGHTxWIDTH"),
        (["--repeat", "0"], "0 is not above 0"),
        (["--threads", "x"], "invalid int value: 'x'"),
        (["--queries", "5"], "--queries belongs to --levels"),
        (["--scaling", "--shape", "a"], "--scaling makes its own shapes"),
        (["--other", "official-cuda"], "has no kernels for a CPU"),
        (["--device", "cuda"], "torch sees no GPU"),
    ],
)
def test_errors(benchmark_op, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        benchmark_op.main(arguments)
    assert message in f"{error.value} {capsys.readouterr().err}"


@pytest.mark.cuda
def test_on_a_gpu(benchmark_op, capsys):
    benchmark_op.main([*TINY, "--device", "cuda", "--queries", "5", "--dtype", "bfloat16"])
    assert len(rows(capsys.readouterr().out)) > 8
