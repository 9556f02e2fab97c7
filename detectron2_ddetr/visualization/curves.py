"""The course of a training: losses and AP over iterations."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np

from ..engine.history import read_history
from ..errors import InputError
from .text import font_families, readable

logger = logging.getLogger(__name__)

LOSSES = ("total_loss", "loss_ce", "loss_bbox", "loss_giou")
#: With the name of the data set before them, "NAME/bbox/AP", where there are several.
METRICS = ("bbox/AP", "bbox/AP50")
#: Of Okabe and Ito, which colour-blind people can tell apart as well.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
AP50_STYLE = {"linestyle": "--", "markersize": 8, "markerfacecolor": "none"}
#: An axis of losses is logarithmic, so that zero is as absent as NaN.
LEAST_LOSS = 1e-12
#: A curve of fewer points than this shows each of them.
FEW_POINTS = 25


def read_metrics(metrics_json: str) -> dict[int, dict[str, float]]:
    """
    The metrics.json of a training, see :func:`read_history`.

    Returns:
        The scalars by iteration, iterations ascending; NaN for what is no number, such as null.
        Where the iterations go back, a training was resumed or begun again: what the one before
        had written from there on is left out.
    """
    by_iteration: dict[int, dict[str, float]] = {}
    for scalars in read_history(metrics_json):
        now = scalars["iteration"]
        if by_iteration and now < max(by_iteration):
            by_iteration = {i: old for i, old in by_iteration.items() if i < now}
        by_iteration.setdefault(now, {}).update(
            {k: v if type(v) in (int, float) else float("nan") for k, v in scalars.items()}
        )
    if not by_iteration:
        raise InputError(f"{metrics_json}: no metrics yet; train for a few iterations first")
    return by_iteration


def plot_training_curves(metrics_json: str, path: str) -> None:
    """
    Writes a figure: left the losses (total, and the three of the last layer), right AP and AP50 of
    each test set. What is not finite leaves a gap.

    Args:
        metrics_json: see :func:`read_metrics`.
        path: of the picture.
    """
    by_iteration = read_metrics(metrics_json)
    with figure_of(path, max(by_iteration)) as (losses, metrics):
        _draw_losses(losses, by_iteration)
        _draw_metrics(metrics, by_iteration)


@contextlib.contextmanager
def figure_of(
    path: str, last_iteration: int, *, columns: int = 2, height: float = 5
) -> Iterator[Any]:
    """
    Two axes over iterations, which the caller draws into and the end of the block writes.

    Args:
        path: of the picture.
        columns: of the legends.
        height: of all, where 12 is the width.
    """
    matplotlib.use("Agg")  # works without a display
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(12, height), constrained_layout=True)
    try:
        yield both
        for axes in both:
            axes.set_xlabel("iteration")
            axes.set_xlim(0, 1.03 * (last_iteration + 1))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            handles, labels = axes.get_legend_handles_labels()
            if handles:
                # Below, where it cannot hide a curve.
                axes.legend(
                    frameon=False,
                    ncols=columns,
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.12),
                    prop={"family": font_families("".join(labels))},
                )
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path, dpi=130)
    finally:
        pyplot.close(figure)


def test_set_metrics(by_iteration: dict[int, dict[str, float]]) -> list[tuple[str, str]]:
    """(data set, metric) of each AP in order of appearance; "" for that of the only data set."""
    keys = dict.fromkeys(key for scalars in by_iteration.values() for key in scalars)
    names = dict.fromkeys(
        key[: -len(metric)]
        for key in keys
        for metric in METRICS
        if f"/{key}".endswith(f"/{metric}")
    )
    return [(name.rstrip("/"), m) for name in names for m in METRICS if name + m in keys]


def _draw_losses(axes: Any, by_iteration: dict[int, dict[str, float]]) -> None:
    for name, color in zip(LOSSES, COLORS[4:] + COLORS):
        width = 2.0 if name == "total_loss" else 1.3
        points = points_of(by_iteration, name, least=LEAST_LOSS)
        draw_curve(axes, *points, name, color=color, linewidth=width)
    axes.set(title="training losses (with their last values)")
    finish_losses(axes)


def finish_losses(axes: Any) -> None:
    """What is common to axes of losses: the total is an order of magnitude above its parts."""
    axes.set(ylabel="weighted loss", yscale="log")
    for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_format(_PlainLogFormatter(labelOnlyBase=False))
    if not axes.lines:
        axes.text(0.5, 0.5, "no finite loss", ha="center", transform=axes.transAxes)


def _draw_metrics(axes: Any, by_iteration: dict[int, dict[str, float]]) -> None:
    found = test_set_metrics(by_iteration)
    names = list(dict.fromkeys(name for name, _ in found))
    for name, metric in found:
        number = names.index(name)
        what = metric.split("/")[1]
        shown = readable(name, f"test set {number + 1}").replace("$", r"\$") if name else ""
        draw_curve(
            axes,
            *points_of(by_iteration, f"{name}/{metric}" if name else metric),
            f"{what} {shown}".strip(),
            color=COLORS[number % len(COLORS)],
            marker="os^Dv"[number % 5],
            # Points alone must differ too, also where they coincide.
            **({} if metric == METRICS[0] else AP50_STYLE),
        )
    where = "the test set" if len(names) < 2 else f"{len(names)} test sets"
    axes.set(title=f"box AP on {where} (with the last values)")
    finish_metrics(axes, evaluated=bool(found))


def finish_metrics(axes: Any, *, evaluated: bool) -> None:
    """
    Args:
        evaluated: whether there were evaluations at all.
    """
    axes.set(ylabel="AP (%)")
    highest = max((np.nanmax(line.get_ydata()) for line in axes.lines), default=100.0)
    axes.set_ylim(0, min(1.15 * highest, 102.0) or 1.0)
    if not axes.lines:
        text = "evaluated, but no AP is a number" if evaluated else "not evaluated yet"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)


def points_of(
    by_iteration: dict[int, dict[str, float]], key: str, *, least: float = -np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of one scalar, (n,) each; NaN for what is not finite or too small."""
    points = [(i, scalars[key]) for i, scalars in by_iteration.items() if key in scalars]
    iterations, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return iterations, np.where(np.isfinite(values) & (values >= least), values, np.nan)


def draw_curve(
    axes: Any, iterations: np.ndarray, values: np.ndarray, label: str, **style: Any
) -> None:
    """Draws one scalar, with gaps where it is NaN; nothing if it is always so."""
    drawn = ~np.isnan(values)
    if not drawn.any():
        return
    # A point between two gaps has no line, so it is marked; so are all where there are few.
    around = np.pad(drawn, 1)
    marked = drawn & (~around[:-2] & ~around[2:] | (drawn.sum() < FEW_POINTS))
    label = f"{label}  {values[drawn][-1]:.3g}"
    style = {"marker": "o", "markersize": 4.5, **style}
    marks = np.flatnonzero(marked).tolist()
    axes.plot(iterations, values, label=label, markevery=marks, clip_on=False, **style)


class _PlainLogFormatter(matplotlib.ticker.LogFormatter):
    """Ticks as 0.5, 2, 10 rather than as powers of ten."""

    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:g}"
