"""The courses of several trainings in one picture."""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError, MissingFileError
from .curves import (
    COLORS,
    LEAST_LOSS,
    METRICS,
    draw_curve,
    figure_of,
    finish_losses,
    finish_metrics,
    points_of,
    read_metrics,
    test_set_metrics,
)
from .text import readable

#: After the last colour, the first again with another line.
LINES = ("-", "--", ":", "-.")


def compare_runs(folders: Sequence[str], path: str) -> None:
    """
    Writes a figure: left the total loss of each training, smoothed, right the AP on its first test
    set, with the last value and the best.

    Args:
        folders: of the trainings, each with a metrics.json.
        path: of the picture, which ends in .png, .pdf or .svg.

    Raises:
        MissingFileError: if there is no such folder, or it has no metrics.json.
        InputError: if that is empty or damaged, or the picture is none.
    """
    if os.path.splitext(path)[1] not in (".png", ".pdf", ".svg"):
        raise InputError(f"{path}: the picture must end in .png, .pdf or .svg")
    runs = [read_metrics(_metrics_of(folder)) for folder in folders]
    last = max(max(run) for run in runs)
    with figure_of(path, last, columns=1, height=5 + 0.22 * len(runs)) as (losses, metrics):
        evaluated = False
        for number, (name, run) in enumerate(zip(run_names(folders), runs)):
            color = COLORS[number % len(COLORS)]
            style = {"color": color, "linestyle": LINES[number // len(COLORS) % len(LINES)]}
            _draw_loss(losses, run, name, style)
            evaluated |= _draw_ap(metrics, run, name, style)
        losses.set(title="total loss, smoothed (with its last value)")
        metrics.set(title="box AP (with its last value, and the best)")
        finish_losses(losses)
        finish_metrics(metrics, evaluated=evaluated)


def run_names(folders: Sequence[str]) -> list[str]:
    """The names of the folders; the whole path of those whose name another has too."""
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    names = [f if names.count(name) > 1 else name for f, name in zip(folders, names)]
    shown = [readable(name, f"run {number}") for number, name in enumerate(names, start=1)]
    # To matplotlib, $ begins a formula, and a label that begins with _ is none.
    return [re.sub("^_", " _", name.replace("$", r"\$")) for name in shown]


def smoothed(values: np.ndarray) -> np.ndarray:
    """
    Means over about a fifteenth of the curve around each value; of a short curve, the values.

    Args:
        values: (n,), NaN for a gap, which stays one.
    """
    means = values.copy()
    for i in np.flatnonzero(~np.isnan(values)):
        # As many on both sides, fewer near the ends: the mean of a slope is its middle.
        half = min(len(values) // 30, i, len(values) - 1 - i)
        means[i] = np.nanmean(values[i - half : i + half + 1])
    return means


def _metrics_of(folder: str) -> str:
    if not os.path.isdir(folder):
        raise MissingFileError(f"there is no folder {folder}: name the folders of trainings")
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        raise MissingFileError(
            f"{folder} has no metrics.json, so it is not the folder of a training; that is what "
            "OUTPUT_DIR was"
        )
    return path


def _draw_loss(axes: Any, run: dict[int, dict[str, float]], name: str, style: dict) -> None:
    iterations, values = points_of(run, "total_loss", least=LEAST_LOSS)
    means = smoothed(values)
    if not np.array_equal(means, values, equal_nan=True):
        axes.plot(iterations, values, color=style["color"], alpha=0.25, linewidth=0.8)
    draw_curve(axes, iterations, means, name, **style)


def _draw_ap(axes: Any, run: dict[int, dict[str, float]], name: str, style: dict) -> bool:
    """Whether there was an evaluation."""
    found = [data for data, metric in test_set_metrics(run) if metric == METRICS[0]]
    if not found:
        return False
    iterations, values = points_of(run, f"{found[0]}/{METRICS[0]}" if found[0] else METRICS[0])
    draw_curve(axes, iterations, values, name, **style)
    if not np.isnan(values).all():
        best = int(np.nanargmax(values))
        line = axes.lines[-1]
        where = f" on {readable(found[0], 'its test set')}" if found[0] else ""
        said = f"{line.get_label()}, best {values[best]:.3g} at {iterations[best]:.0f}{where}"
        line.set_label(said.replace("$", r"\$") if where else said)
    return True
