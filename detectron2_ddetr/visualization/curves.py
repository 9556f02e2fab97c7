"""The course of a training: losses and AP over iterations."""

import json
import logging
import os

import matplotlib

logger = logging.getLogger(__name__)

LOSSES = ("total_loss", "loss_ce", "loss_bbox", "loss_giou")
METRICS = ("bbox/AP", "bbox/AP50")


def read_metrics(metrics_json: str) -> dict[int, dict[str, float]]:
    """
    Reads the metrics.json of a training, one json object per line.

    Returns:
        The scalars by iteration, iterations ascending. If an iteration occurs more than once, as
        after a resumed training, the later lines win; a last line that was cut off is left out.
    """
    with open(metrics_json, encoding="utf-8") as file:
        lines = file.read().split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    by_iteration: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{metrics_json}, line {number}"
        try:
            scalars = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                logger.warning("%s: left out, since the run was killed while writing it", where)
                continue
            raise ValueError(f"{where}: not valid json ({error}); remove this line") from error
        if not isinstance(scalars, dict) or type(scalars.get("iteration")) is not int:
            raise ValueError(f"{where}: expected an object with an int 'iteration'; remove it")
        by_iteration.setdefault(scalars["iteration"], {}).update(scalars)
    if not by_iteration:
        raise ValueError(f"{metrics_json}: no metrics yet; train for a few iterations first")
    return dict(sorted(by_iteration.items()))


def plot_training_curves(metrics_json: str, path: str) -> None:
    """
    Writes a figure: left the losses (total, and the three of the last layer), right AP and AP50.

    Args:
        metrics_json: see :func:`read_metrics`.
        path: of the picture.
    """
    matplotlib.use("Agg")  # works without a display
    from matplotlib import pyplot

    by_iteration = read_metrics(metrics_json)
    figure, (losses, metrics) = pyplot.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for name in LOSSES:
        points = [(i, s[name]) for i, s in by_iteration.items() if name in s]
        if points:
            width = 2.0 if name == "total_loss" else 1.3
            losses.plot(*zip(*points), label=f"{name}  {points[-1][1]:.3g}", linewidth=width)
    losses.set(title="training losses (with their final values)", ylabel="weighted loss")
    losses.set_yscale("log")  # the total is an order of magnitude above its parts
    losses.legend(frameon=False, ncols=2)

    for name, offset in zip(METRICS, (-12, 8)):
        points = [(i, s[name]) for i, s in by_iteration.items() if name in s]
        if points:
            (line,) = metrics.plot(*zip(*points), "o-", markersize=4, label=name.split("/")[1])
            metrics.annotate(
                f"{points[-1][1]:.1f}",
                points[-1],
                xytext=(-4, offset),
                textcoords="offset points",
                ha="right",
                color=line.get_color(),
                fontweight="bold",
            )
    metrics.set(title="box AP on the test set", ylabel="AP (%)", ylim=(0, 100))
    if metrics.lines:
        metrics.legend(frameon=False, loc="upper left")
    else:
        metrics.text(0.5, 0.5, "not evaluated yet", ha="center", transform=metrics.transAxes)
    for axes in (losses, metrics):
        axes.set_xlabel("iteration")
        axes.set_xlim(0, 1.03 * (max(by_iteration) + 1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
