"""A table of what a model costs: counted, and measured on this machine."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import InputError
from ..measuring import machine, measure, peak_extra_mib
from ..toolbox import CfgNode, build_model
from .counts import Network, Part, count, count_by_fvcore, model_on_meta

#: What fvcore's counter has and PyTorch's has not.
_ONLY_FVCORE = ("batch_norm", "group_norm", "layer_norm", "upsample_nearest2d")


class Run(NamedTuple):
    """The network on one image: seconds of each run, its memory, and what fvcore counted in it."""

    machine: str
    seconds: list[float]
    peak_mib: float | None
    fvcore: dict[str, int]


def default_size(cfg: CfgNode) -> tuple[int, int]:
    """
    (height, width) of an average image of COCO under INPUT.MIN_SIZE_TEST, which is 1.4 times as
    wide as high: 800x1120 where the papers of the family count, over the first images of val2017.
    """
    height = cfg.INPUT.MIN_SIZE_TEST
    return height, min(round(1.4 * height), cfg.INPUT.MAX_SIZE_TEST)


def analyze(cfg: CfgNode, size: tuple[int, int], repeat: int = 5) -> str:
    """
    Args:
        cfg: of the model; MODEL.WEIGHTS is not read.
        size: (height, width) of one image.
        repeat: timed runs on MODEL.DEVICE; 0 for none, then all is counted and nothing computed.

    Returns:
        The table.

    Raises:
        InputError: for a size or a number of runs that cannot be.
    """
    if min(size) < 1 or repeat < 0:
        raise InputError(
            f"an image of {size[0]}x{size[1]} and {repeat} runs cannot be: give a height and a "
            "width of at least 1 px (--image-size) and no less than 0 runs (--repeat)"
        )
    parts = count(model_on_meta(cfg), size)
    lines = [f"one image of {size[0]}x{size[1]} px", "", *table(parts), ""]
    lines += [
        "MACs: a multiplication with its addition, what papers of the family call FLOPs; PyTorch's",
        f"counter takes it for two and says {2 * parts[-1].macs / 1e9:.1f} G. What a part calls "
        "counts in it, and where it lies.",
    ]
    if repeat:
        lines += describe(run(cfg, size, repeat))
    return "\n".join(lines)


def table(parts: Sequence[Part]) -> list[str]:
    """A line each, parts of parts indented; the whole comes last."""
    whole = parts[-1]
    rows = [("part", "parameters", "trained", "MACs", "")]
    for part in parts:
        name = "  " * part.name.count(".") + part.name.rsplit(".", 1)[-1] or "all"
        share = f"{part.macs / whole.macs:.1%}"
        numbers = (f"{part.parameters:,}", f"{part.trained:,}", f"{part.macs / 1e9:.2f} G")
        rows.append((name, *numbers, share))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def run(cfg: CfgNode, size: tuple[int, int], repeat: int) -> Run:
    """The network on MODEL.DEVICE: no reading, resizing or post-processing, as in the paper."""
    network = Network(build_model(cfg))
    images = network.image(size)
    device = images.device
    seconds = measure({"": lambda: network(images)}, repeat, 1, time.perf_counter, device)[""]
    peak = peak_extra_mib(lambda: network(images), device)
    where = f"{machine(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return Run(where, seconds, peak, count_by_fvcore(network, images))


def describe(measured: Run) -> list[str]:
    """In lines."""
    extra = sum(measured.fvcore.get(name, 0) for name in _ONLY_FVCORE)
    total = sum(measured.fvcore.values())
    seconds, least, most = (
        statistics.median(measured.seconds),
        min(measured.seconds),
        max(measured.seconds),
    )
    memory = (
        "" if measured.peak_mib is None else f" and {measured.peak_mib:.0f} MiB beside the weights"
    )
    return [
        f"fvcore counts {total / 1e9:.2f} G, {extra / 1e9:.2f} G of them for normalisation and "
        "resizing.",
        "",
        f"{seconds:.3f} s [{least:.3f}, {most:.3f}]{memory}, the network alone: median of "
        f"{len(measured.seconds)} runs",
        f"on {measured.machine}",
    ]
