"""How time and memory grow with one number of the work: a figure of each."""

import os
from collections.abc import Sequence

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator

from ..measuring import power
from .curves import COLORS


def draw_growth(
    what: str,
    values: Sequence[float],
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    path: str,
) -> None:
    """
    Writes a figure with logarithmic axes: left seconds, right MiB, over `values`. The legend has
    the power of the values by which a curve grows; 1 is drawn as a line of dashes.

    Args:
        what: the values are, in words.
        values: ascending.
        curves: by name, the seconds and the MiB at each value.
        title: of all: what was measured, and on what.
        path: of the picture.
    """
    matplotlib.use("Agg")  # works without a display
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(12, 5.2), constrained_layout=True)
    try:
        for number, (axes, unit) in enumerate(zip(both, ("seconds", "MiB"))):
            for (name, pair), color, marker in zip(curves.items(), COLORS, "os^D"):
                y = pair[number]
                label = f"{name}: power {power(values, y):.2f}"
                style = {"color": color, "marker": marker, "markersize": 6}
                axes.plot(values, y, label=label, clip_on=False, **style)
            least = min(pair[number][0] for pair in curves.values())
            proportional = [least * value / values[0] for value in values]
            axes.plot(values, proportional, "--", color="0.6", label="in proportion", zorder=0)
            axes.set(xscale="log", yscale="log", xlabel=what, ylabel=unit)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
        figure.suptitle(title, fontsize=11)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path, dpi=130)
    finally:
        pyplot.close(figure)
