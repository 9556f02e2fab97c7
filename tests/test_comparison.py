"""`ddetr compare`: the curves of several trainings in one picture."""

import cv2
import numpy as np
import pytest

from detectron2_ddetr import cli
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.visualization.comparison import compare_runs, run_names, smoothed

from .test_curves import drawn, write_lines  # noqa: F401  (a fixture)


def write_run(folder, *lines):
    folder.mkdir(parents=True)
    write_lines(folder / "metrics.json", *lines)
    return str(folder)


def curve_of(axes, start):
    """The line whose label begins so."""
    (line,) = [x for x in axes.lines if x.get_label().startswith(start)]
    return line


def test_each_run_has_a_colour_and_its_figures(tmp_path, drawn):  # noqa: F811
    first = [{"iteration": i, "total_loss": 9.0 - i} for i in range(5)]
    first[1]["bbox/AP"], first[4]["bbox/AP"] = 31.25, 20.0
    second = [{"iteration": i, "total_loss": 5.0} for i in (0, 9)]
    second += [{"iteration": 9, "one/bbox/AP": 2.0, "two/bbox/AP": 3.0}]
    third = [{"iteration": 3, "total_loss": float("nan")}]
    runs = [
        write_run(tmp_path / name, *lines)
        for name, lines in (("a", first), ("_b", second), ("c", third))
    ]
    cli.main(["compare", *runs, "--output", str(tmp_path / "picture.png")])
    assert cv2.imread(str(tmp_path / "picture.png")).shape[1] > 1000
    ((losses, metrics),) = drawn
    for axes in (losses, metrics):
        assert len(axes.lines) == 2 and axes.get_xlim()[1] > 9
        assert len({line.get_color() for line in axes.lines}) == 2
    a, b = curve_of(losses, "a  5"), curve_of(losses, " _b  5")
    assert a.get_ydata().tolist() == [9, 8, 7, 6, 5] and b.get_xdata().tolist() == [0, 9]
    ap = curve_of(metrics, "a  20, best 31.2 at 1")
    assert (ap.get_xdata().tolist(), ap.get_ydata().tolist()) == ([1, 4], [31.25, 20])
    assert ap.get_color() == a.get_color()
    assert curve_of(metrics, " _b  2, best 2 at 9 on one").get_color() == b.get_color()
    legends = [[t.get_text() for t in x.get_legend().get_texts()] for x in (losses, metrics)]
    assert legends == [[x.get_label() for x in axes.lines] for axes in (losses, metrics)]


def test_many_runs_differ(tmp_path, drawn):  # noqa: F811
    lines = [{"iteration": 1, "total_loss": 2.0}, {"iteration": 2, "total_loss": 1.0}]
    runs = [write_run(tmp_path / f"r{i}", *lines) for i in range(15)]
    compare_runs(runs, str(tmp_path / "c.png"))
    ((losses, metrics),) = drawn
    assert len({(x.get_color(), x.get_linestyle()) for x in losses.lines}) == 15
    # The legend takes nothing from the curves.
    picture = losses.figure.get_size_inches()[1]
    assert losses.get_position().height * picture > 3
    assert [x.get_text() for x in metrics.texts] == ["not evaluated yet"]


def test_runs_of_the_same_name_have_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert run_names(["x/run/", "y/run", "z", "m$"]) == ["x/run/", "y/run", "z", r"m\$"]
    monkeypatch.chdir(tmp_path / "run")
    assert run_names(["."]) == ["run"]


def by_hand(values):
    """The mean of as many values on both sides as there are, at most a thirtieth of all."""
    means = []
    for i in range(len(values)):
        half = min(len(values) // 30, i, len(values) - 1 - i)
        around = [v for v in values[i - half : i + half + 1] if v == v]
        means.append(sum(around) / len(around) if values[i] == values[i] else float("nan"))
    return means


@pytest.mark.parametrize("count", [1, 29, 30, 200])
def test_smoothed(count):
    values = np.random.default_rng(count).random(count)
    np.testing.assert_allclose(smoothed(values), by_hand(values.tolist()))
    assert (smoothed(values) == values).all() == (count < 30)
    values[0] += 1e18  # leaves no trace where it is not in the mean
    np.testing.assert_allclose(smoothed(values)[9:], by_hand(values.tolist())[9:])
    values[::7] = np.nan
    np.testing.assert_allclose(smoothed(values), by_hand(values.tolist()))
    # Of a slope nothing is changed, at its ends neither.
    np.testing.assert_allclose(smoothed(np.arange(90.0)), np.arange(90.0))


def test_a_smoothed_curve_shows_what_it_hides(tmp_path, drawn):  # noqa: F811
    lines = [{"iteration": i, "total_loss": 2.0 + i % 2} for i in range(60)]
    compare_runs([write_run(tmp_path / "r", *lines)], str(tmp_path / "c.png"))
    raw, mean = drawn[0][0].lines
    assert raw.get_alpha() < 0.5 and raw.get_color() == mean.get_color()
    assert np.ptp(raw.get_ydata()) == 1 > 2 * np.ptp(mean.get_ydata()[2:-2])


def test_what_is_no_run(tmp_path):
    good = write_run(tmp_path / "good", {"iteration": 1, "total_loss": 1.0})
    empty = write_run(tmp_path / "empty")
    damaged = write_run(tmp_path / "damaged", "{", {"iteration": 1})
    (tmp_path / "nothing").mkdir()
    out = ["--output", str(tmp_path / "c.png")]
    for bad, words in (
        (str(tmp_path / "no"), "there is no folder .*no: name the folders of trainings"),
        (str(tmp_path / "nothing"), "nothing has no metrics.json, so it is not the folder of a"),
        (empty, "empty/metrics.json: no metrics yet"),
        (damaged, "damaged/metrics.json, line 1: not valid json"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{words}"):
            cli.main(["compare", good, bad, *out])
    with pytest.raises(SystemExit, match="^error: folder '.*/no' does not exist"):
        cli.main(["compare", good, "--output", str(tmp_path / "no" / "c.png")])
    with pytest.raises(InputError, match="c.jpeg: the picture must end in .png"):
        compare_runs([good], str(tmp_path / "c.jpeg"))
    assert not list(tmp_path.glob("c.*"))
