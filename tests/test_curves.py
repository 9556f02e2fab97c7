"""Curves of a training: how metrics files are read, and what is drawn of them."""

import json
from types import SimpleNamespace

import cv2
import pytest

from detectron2_ddetr.errors import InputError
from detectron2_ddetr.visualization import curves_hook
from detectron2_ddetr.visualization.curves import plot_training_curves, read_metrics
from detectron2_ddetr.visualization.text import readable


def write_lines(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written: (losses, AP) axes each."""
    from matplotlib import pyplot

    figures = []
    monkeypatch.setattr(pyplot, "close", lambda figure: figures.append(figure.axes))
    yield figures
    monkeypatch.undo()
    pyplot.close("all")


def curve(axes, label):
    """{iteration: value} of the line whose label begins so; of a gap, None."""
    (line,) = [x for x in axes.lines if x.get_label().startswith(label + "  ")]
    y = [None if v != v else v for v in line.get_ydata().tolist()]
    return dict(zip(line.get_xdata().tolist(), y))


def test_metrics_of_a_resumed_and_killed_run(tmp_path, caplog):
    path = write_lines(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 5.0},
        {"iteration": 39, "total_loss": 4.0, "lr": 1.0},
        {"iteration": 59, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 4.5},
        '{"iteration": 59, "total_lo',
    )
    assert read_metrics(path) == {
        19: {"iteration": 19, "total_loss": 5.0},
        39: {"iteration": 39, "total_loss": 4.5},
    }
    assert "metrics.json, line 5: left out" in caplog.text


@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"iteration": 1, "to', "metrics.json, line 2: not valid json"),
        ("", "metrics.json, line 2: not valid json"),
        ("[1]", "line 2: expected an object with an int 'iteration'"),
        ('{"total_loss": 1}', "line 2: expected an object with an int 'iteration'"),
    ],
)
def test_bad_metrics_line(tmp_path, bad, message):
    good = {"iteration": 1, "total_loss": 1.0}
    with pytest.raises(ValueError, match=message):
        read_metrics(write_lines(tmp_path / "metrics.json", good, bad, good))


def test_no_metrics(tmp_path):
    with pytest.raises(ValueError, match="no metrics yet"):
        read_metrics(write_lines(tmp_path / "metrics.json", ""))


def test_a_shorter_run_into_the_same_folder(tmp_path):
    """What the run before it wrote is not the end of its curve, at whatever steps it wrote."""
    first = [{"iteration": i, "total_loss": 9.0, "bbox/AP": 1.0} for i in range(19, 200, 20)]
    second = [{"iteration": i, "total_loss": 5.0} for i in (9, 19, 29, 39)]
    third = [{"iteration": i, "total_loss": 4.0} for i in (34, 44)]
    path = write_lines(tmp_path / "metrics.json", *first, *second, *third)
    read = read_metrics(path)
    assert {i: s["total_loss"] for i, s in read.items()} == {
        9: 5.0, 19: 5.0, 29: 5.0, 34: 4.0, 44: 4.0
    }  # fmt: skip
    assert not any("bbox/AP" in scalars for scalars in read.values())


NAMES = ["cells_val", "клетки", "a$b$c", "_mine", "验证"]


def test_curves_of_several_test_sets(tmp_path, drawn):
    lines = [
        {"iteration": i, **{f"{n}/bbox/{m}": k + i for k, n in enumerate(NAMES)}}
        for m in ("AP", "AP50", "AP75", "AP-RBC")
        for i in (10, 20)
    ]
    lines = sorted(lines, key=lambda line: line["iteration"])
    plot_training_curves(write_lines(tmp_path / "metrics.json", *lines), str(tmp_path / "c.png"))
    ((losses, metrics),) = drawn
    shown = [n if readable(n, "") else f"test set {k + 1}" for k, n in enumerate(NAMES)]
    for k, name in enumerate(shown):
        for metric in ("AP", "AP50"):
            label = f"{metric} {name}".replace("$", r"\$")
            assert curve(metrics, label) == {10: k + 10, 20: k + 20}
    legend = [text.get_text() for text in metrics.get_legend().get_texts()]
    assert len(metrics.lines) == len(legend) == 2 * len(NAMES)
    styles = {(x.get_color(), x.get_marker(), x.get_linestyle()) for x in metrics.lines}
    assert len(styles) == 2 * len(NAMES)
    assert not metrics.texts and [x.get_text() for x in losses.texts] == ["no finite loss"]


def test_no_number_is_a_gap(tmp_path, drawn):
    lines = [{"iteration": i, "total_loss": 4.0, "bbox/AP": 5.0} for i in range(5)]
    lines[1].update({"total_loss": None, "bbox/AP": float("nan")})
    lines[3].update({"total_loss": float("inf"), "bbox/AP": None})
    lines += [{"iteration": 5, "total_loss": 0.0, "lr": 1.0}]
    plot_training_curves(write_lines(tmp_path / "metrics.json", *lines), str(tmp_path / "c.png"))
    ((losses, metrics),) = drawn
    gaps = {0: 4.0, 1: None, 2: 4.0, 3: None, 4: 4.0}
    assert curve(losses, "total_loss") == {**gaps, 5: None}
    assert curve(metrics, "AP") == {i: v and 5.0 for i, v in gaps.items()}
    # Between two gaps there is no line: the point is marked.
    assert losses.lines[0].get_markevery() == [0, 2, 4]


@pytest.mark.parametrize("ap, ap50", [(1.0, 1.0), (1.0, 3.0), (0.0, 0.0), (100.0, 100.0)])
def test_one_point_and_any_ap_can_be_seen(tmp_path, drawn, ap, ap50):
    line = {"iteration": 19, "total_loss": 15.2, "bbox/AP": ap, "bbox/AP50": ap50}
    plot_training_curves(write_lines(tmp_path / "metrics.json", line), str(tmp_path / "c.png"))
    ((losses, metrics),) = drawn
    for axes in (losses, metrics):
        for x in axes.lines:
            assert x.get_marker() == "o" and x.get_markevery() == [0]
            low, high = axes.get_ylim()
            assert low <= x.get_ydata()[0] <= high
    assert metrics.get_ylim()[1] <= max(1.2 * ap50, 1.0)  # not lost at the foot of 0..100
    assert len({x.get_markersize() for x in metrics.lines}) == 2  # one around the other
    labels = [x.get_label() for x in metrics.lines]
    assert labels == [f"AP  {ap:g}", f"AP50  {ap50:g}"]


def test_a_long_curve_is_not_a_row_of_dots(tmp_path, drawn):
    lines = [{"iteration": i, "total_loss": 1.0 + i} for i in range(100)]
    plot_training_curves(write_lines(tmp_path / "metrics.json", *lines), str(tmp_path / "c.png"))
    assert drawn[0][0].lines[0].get_markevery() == []


def test_evaluated_without_a_number(tmp_path, drawn):
    line = {"iteration": 19, "total_loss": 15.2, "bbox/AP": None, "bbox/AP50": float("nan")}
    plot_training_curves(write_lines(tmp_path / "metrics.json", line), str(tmp_path / "c.png"))
    assert [x.get_text() for x in drawn[0][1].texts] == ["evaluated, but no AP is a number"]


@pytest.mark.parametrize("evaluated", [True, False])
def test_curves(tmp_path, evaluated):
    lines = [
        {"iteration": i, "total_loss": 9 / (i + 1), "loss_ce": 1.0, "loss_bbox": float("nan")}
        for i in range(0, 100, 10)
    ]
    if evaluated:
        lines[4].update({"bbox/AP": 10.0, "bbox/AP50": 30.0})
        lines[9].update({"bbox/AP": 20.0, "bbox/AP50": 45.0})
    metrics_json = write_lines(tmp_path / "metrics.json", *lines)
    plot_training_curves(metrics_json, str(tmp_path / "new" / "curves.png"))
    picture = cv2.imread(str(tmp_path / "new" / "curves.png"))
    assert picture.shape[1] > 1000 and picture.std() > 5


def test_metrics_that_are_no_text(tmp_path):
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="metrics.json: cannot be read"):
        read_metrics(str(tmp_path / "metrics.json"))


@pytest.mark.parametrize("max_iter, expected", [(40, [9, 19, 29, 40]), (35, [9, 19, 29, 35])])
def test_drawn_after_each_evaluation(tmp_path, monkeypatch, max_iter, expected):
    """From a metrics.json that has it, and once in the end; not after what was stopped."""
    at = []
    monkeypatch.setattr(
        curves_hook, "plot_training_curves", lambda *paths: at.append((trainer.iter, *paths))
    )
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path), TEST=SimpleNamespace(EVAL_PERIOD=10))
    trainer = SimpleNamespace(cfg=cfg, max_iter=max_iter, iter=0)
    hook = curves_hook.DrawCurves()
    hook.trainer = trainer
    for trainer.iter in range(max_iter):
        hook.after_step()
    stopped = len(at)
    trainer.iter = 30
    hook.after_train()
    assert len(at) == stopped == 3
    trainer.iter = max_iter
    hook.after_train()
    files = (str(tmp_path / "metrics.json"), str(tmp_path / "curves.png"))
    assert at == [(i, *files) for i in expected]
    cfg.TEST.EVAL_PERIOD = 0
    for trainer.iter in range(max_iter):
        hook.after_step()
    assert len(at) == len(expected)
