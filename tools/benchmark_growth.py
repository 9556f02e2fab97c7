#!/usr/bin/env python
"""
How time and memory of a training step and of an inference grow, one number at a time:

    python tools/benchmark_growth.py --config-file configs/quick_start.yaml --output output/growth

Prints a row for each value and the power by which each quantity grows, and draws a figure for each
axis. Those of `ranks` train in that many processes, each with a batch of its own, so that power 0
would be perfect; all others run in this process.
"""

import argparse
import datetime
import os
import pickle
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # measure this clone

from benchmark import CLOCKS, our_functions, synthetic_batch  # noqa: E402

from detectron2_ddetr.config import load_config  # noqa: E402
from detectron2_ddetr.engine.trainer import Trainer  # noqa: E402
from detectron2_ddetr.measuring import machine, measure, peak_extra_mib, power  # noqa: E402
from detectron2_ddetr.toolbox import comm, launch  # noqa: E402
from detectron2_ddetr.visualization.growth import draw_growth  # noqa: E402

NODE = "MODEL.DETR."


class Work(NamedTuple):
    """What is run: an image is 3/4 as high as it is wide."""

    width: int = 320
    batch: int = 1
    boxes: int = 10
    queries: int | None = None
    levels: int | None = None
    threads: int | None = None
    ranks: int = 1


#: By the name of what changes in :class:`Work`: in words, and the values.
AXES: dict[str, tuple[str, Sequence[int]]] = {
    "width": ("pixels of an image", (160, 320, 640)),
    "queries": ("queries", (100, 300, 900)),
    "levels": ("levels", (3, 4, 5)),
    "boxes": ("boxes of an image", (1, 10, 100)),
    "batch": ("images of a batch", (1, 2, 4)),
    "threads": ("threads", (1, 2)),
    "ranks": ("processes, each with a batch", (1, 2)),
}
KINDS = ("training step", "inference")


def run(work: Work, args: argparse.Namespace, result: str) -> None:
    """Writes into `result`, by kind, the seconds of each turn and the MiB."""
    opts = ["SOLVER.IMS_PER_BATCH", work.batch, *args.opts]
    for key, value in (("NUM_QUERIES", work.queries), ("NUM_FEATURE_LEVELS", work.levels)):
        opts += [] if value is None else [NODE + key, value]
    cfg = load_config(args.config_file, opts)
    # Processes share the cores, as those of a training do.
    torch.set_num_threads(work.threads or max(1, args.threads // work.ranks))
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    model.load_state_dict(model.state_dict(), strict=False)  # frozen layers count as loaded
    batch = synthetic_batch(cfg, (round(0.75 * work.width), work.width), work.boxes)
    train_step, infer = our_functions(cfg, model)
    if work.ranks > 1:
        wrapped = DistributedDataParallel(model)
        optimizer = Trainer.build_optimizer(cfg, model)

        def train_step(batch: list[dict]) -> None:
            optimizer.zero_grad()
            sum(wrapped(batch).values()).backward()
            optimizer.step()

    found = {}
    for kind, call in zip(KINDS, (train_step, infer)):
        sides = {"ours": lambda call=call: call(batch)}
        seconds = measure(sides, args.repeat, 1, CLOCKS[args.clock], model.device)["ours"]
        found[kind] = (seconds, peak_extra_mib(sides["ours"], model.device))
    if comm.is_main_process():
        Path(result).write_bytes(pickle.dumps(found))


def point(work: Work, args: argparse.Namespace) -> dict[str, tuple[list[float], float | None]]:
    """What :func:`run` finds, in as many processes as the work says."""
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "found")
        launch(run, work.ranks, dist_url="auto", args=(work, args, result))
        return pickle.loads(Path(result).read_bytes())


def grow(name: str, args: argparse.Namespace, setting: str) -> None:
    """Prints and draws one axis."""
    what, changed = AXES[name]
    values = [x * round(0.75 * x) if name == "width" else x for x in changed]
    curves: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in KINDS}
    for value, number in zip(changed, values):
        work = Work(**({"width": args.width} | {name: value}))
        for kind, (seconds, mib) in point(work, args).items():
            mib = max(mib or 0.0, 1.0)  # below a MiB nothing is known
            spread = f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"
            print(f"| {what} | {number} | {kind} | {spread} | {mib:.0f} | {setting} |")
            curves[kind][0].append(statistics.median(seconds))
            curves[kind][1].append(mib)
    if name == "ranks":  # an evaluation shares its images out; no process works with another
        del curves["inference"]
    powers = [
        f"{kind} {power(values, seconds):.2f} (time), {power(values, mib):.2f} (memory)"
        for kind, (seconds, mib) in curves.items()
    ]
    print(f"\n{what}, power: {'; '.join(powers)}\n", flush=True)
    title = f"{Path(args.config_file).stem}, {setting}"
    draw_growth(what, values, curves, title, os.path.join(args.output, f"{name}.png"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True)
    add("--output", required=True, help="the folder of the figures")
    add("--over", nargs="+", choices=AXES, default=list(AXES), help="default: all")
    add("--width", type=int, default=320, help="of images, where it does not change")
    add("--threads", type=int, default=torch.get_num_threads(), help="likewise")
    add("--repeat", type=int, default=5, help="timed turns")
    add("--clock", choices=CLOCKS, default="wall")
    add("opts", nargs="*", help="KEY VALUE pairs that change the config")
    args = parser.parse_args(arguments)
    setting = (
        f"{args.repeat} turns, {args.clock} clock, load {os.getloadavg()[0]:.1f} before, "
        f"{machine(torch.device('cpu'))}, {args.threads} threads, torch {torch.__version__}, "
        f"{datetime.date.today().isoformat()}"
    )
    print("| over | value | what | seconds | MiB | how |\n|---|---|---|---|---|---|")
    for name in args.over:
        grow(name, args, setting)


if __name__ == "__main__":
    main()
