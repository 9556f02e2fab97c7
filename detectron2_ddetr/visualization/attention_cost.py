"""How the cost of attention grows with the image: dense, deformable, and across."""

import os

import matplotlib
import torch
from matplotlib.ticker import EngFormatter

from ..analysis.attention_cost import Setting, curves, pyramid
from ..measuring import machine
from .curves import COLORS

#: Cells of the finest level along a side.
SIDES = (8, 12, 16, 24, 32, 48, 64, 96, 128)
#: Dense attention takes a second on one of these, and a minute on the largest of those above.
TIMED = (8, 12, 16, 24, 32, 48, 64)


def draw_attention_cost(setting: Setting, path: str) -> None:
    """
    Writes a figure: over the tokens of square images, left the multiply-adds of one layer as
    PyTorch's counter finds them, with the power of the tokens by which they grow in the end, right
    the time of one forward pass on this machine's CPU.

    Args:
        setting: of all layers.
        path: of the picture.
    """
    matplotlib.use("Agg")  # works without a display
    from matplotlib import pyplot

    found = curves(setting, SIDES, TIMED)
    figure, (counted, measured) = pyplot.subplots(1, 2, figsize=(12, 5.6), constrained_layout=True)
    try:
        for (name, curve), color, marker in zip(found.items(), COLORS, "os^D"):
            style = {"color": color, "marker": marker, "markersize": 5}
            label = f"{name}: tokens$^{{{curve.exponent:.2f}}}$"
            counted.plot(curve.tokens, curve.macs, label=label, **style)
            measured.plot(curve.tokens[: len(TIMED)], curve.seconds, **style)
        shapes = ", ".join(f"{h}x{w}" for h, w in pyramid(setting, SIDES[-1]))
        counted.set(title="counted", ylabel="multiply-adds of one layer")
        cpu = machine(torch.device("cpu"))
        threads = f"PyTorch on {torch.get_num_threads()} of them"
        measured.set(title=f"measured: {cpu}, {threads}", ylabel="time of one forward pass")
        for axes in (counted, measured):
            unit = "s" if axes is measured else ""
            axes.set(xscale="log", yscale="log", xlabel="tokens of a square image, all levels")
            axes.set_xlim(counted.get_xlim())
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
            axes.yaxis.set_major_formatter(EngFormatter(unit))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(
            f"Attention of {setting.d_model} channels, {setting.n_heads} heads, "
            f"{setting.n_levels} levels ({shapes} at the right end), {setting.n_points} points; "
            f"{setting.num_queries} queries across"
        )
        figure.legend(*counted.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path, dpi=130)
    finally:
        pyplot.close(figure)
