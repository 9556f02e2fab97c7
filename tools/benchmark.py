#!/usr/bin/env python
"""
Seconds per training step and per image, beside a peer in the same run.

The two sides take turns (A B A B ...) and the ratio is the median of the ratios of neighbours, so
what slows the machine down for a while slows both. Weights are random: MODEL.WEIGHTS is not read.

`--peer MODULE:FUNCTION` names any other implementation on the Python path. The function takes a
dict, {"config_file", "opts", "config": the config}, and returns two functions:

* `train_step(images, targets) -> float`: forward, loss, backward, clip, update; the loss.
* `infer(images) -> None`: network and post-processing.

`images` are normalised, (3, h, w) float32; `targets` have "labels" and "boxes", (cx, cy, w, h) in
[0, 1]. They are the tensors that the model itself reads, which is checked before anything is timed.

Inference comes first, in a process that has not trained (of several configs only the first), as
where a model is served: training leaves the C library with memory that it would otherwise ask the
system for again and again.

With SOLVER.AMP.ENABLED and without --peer, the peer is the same model in float32.

Several configs are measured one after the other. `--csv FOLDER` adds the rows to a file there that
is named by the processor, its threads and the version of torch.
"""

import argparse
import copy
import csv
import datetime
import importlib
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # measure this clone

from detectron2_ddetr.collect_env import describe_environment  # noqa: E402
from detectron2_ddetr.config import load_config  # noqa: E402
from detectron2_ddetr.data.train_loader import build_train_loader  # noqa: E402
from detectron2_ddetr.engine.trainer import Trainer  # noqa: E402
from detectron2_ddetr.measuring import Sides, machine, measure, peak_extra_mib  # noqa: E402
from detectron2_ddetr.toolbox import Boxes, CfgNode, Instances  # noqa: E402

#: Of the sides, as columns.
QUANTITIES = ("median", "least", "most")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def synthetic_batch(cfg: CfgNode, size: tuple[int, int], num_boxes: int) -> list[dict]:
    """SOLVER.IMS_PER_BATCH noise images of that (height, width), with as many random boxes each."""
    random = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        corners = torch.rand(2, num_boxes, 2, generator=random) * torch.tensor(size[::-1])
        boxes = Boxes(torch.cat((corners.amin(0), corners.amax(0)), dim=1))
        num_classes = cfg.MODEL.DETR.NUM_CLASSES
        labels = torch.randint(num_classes, (num_boxes,), generator=random)
        image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=random)
        instances = Instances(size, gt_boxes=boxes, gt_classes=labels)
        batch.append({"image": image, "instances": instances})
    return batch


def seen_by_model(model: nn.Module, batch: list[dict]) -> tuple[list[Tensor], list[dict]]:
    """The images, without their padding, and the targets that the network really receives."""
    images, targets = [], []
    hooks = [
        model.backbone.register_forward_pre_hook(lambda _, inputs: images.extend(inputs[0])),
        model.criterion.register_forward_pre_hook(lambda _, inputs: targets.extend(inputs[1])),
    ]
    with torch.no_grad():
        model.train()(batch)
    for hook in hooks:
        hook.remove()
    sizes = [x["image"].shape[-2:] for x in batch]
    return [x[:, :h, :w].clone() for x, (h, w) in zip(images, sizes)], targets


def same_inputs(first: tuple[list[Tensor], list[dict]], other: tuple) -> bool:
    """Whether two results of :func:`seen_by_model` are equal to the bit."""
    flat = [
        [*images, *(target[key] for target in targets for key in ("labels", "boxes"))]
        for images, targets in (first, other)
    ]
    return all(map(torch.equal, *flat))


def our_functions(cfg: CfgNode, model: nn.Module) -> tuple[Callable, Callable]:
    """(train_step, infer) of this package; both take a batch of the data loader."""
    optimizer = Trainer.build_optimizer(cfg, model)
    detector = model.for_inference()

    def train_step(batch: list[dict]) -> float:
        loss = sum(model(batch).values())
        value = loss.item()  # as the trainer does: an update needs a finite loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # clips as well
        return value

    @torch.no_grad()
    def infer(batch: list[dict]) -> None:
        detector(batch)

    return train_step, infer


def spread(values: list[float]) -> list[float]:
    """Of :data:`QUANTITIES`; nothing of nothing."""
    return [statistics.median(values), min(values), max(values)] if values else []


def summary(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of ours, peer, and their ratio turn by turn: the spread. Empty without a peer."""
    ours, peer = seconds["ours"], seconds.get("peer", [])
    ratios = [a / b for a, b in zip(ours, peer)]
    return {"ours, s": spread(ours), "peer, s": spread(peer), "ours / peer": spread(ratios)}


def markdown(row: dict[str, object]) -> str:
    """A row as BENCHMARKS.md has it."""
    cells = [
        "{:.3f} [{:.3f}, {:.3f}]".format(*cell) if cell and isinstance(cell, list) else cell
        for cell in row.values()
    ]
    return f"| {' | '.join(str(cell or '') for cell in cells)} |"


def csv_file(folder: str, machine: str, threads: int) -> Path:
    """Named by what its numbers are of."""
    name = f"{machine}, {threads} threads, torch {torch.__version__}"
    return Path(folder) / f"{re.sub('[^A-Za-z0-9.]+', '_', name)}.csv"


def add_to_csv(path: Path, row: dict[str, object]) -> None:
    """One line; median, least and most have columns of their own."""
    flat: dict[str, object] = {}
    for name, cell in row.items():
        if isinstance(cell, list):
            flat |= {f"{name}, {q}": x for q, x in zip(QUANTITIES, cell or [""] * 3)}
        else:
            flat[name] = cell
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(flat))
        if new:
            writer.writeheader()
        writer.writerow(flat)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    add = parser.add_argument
    add("--config-file", required=True, action="append", help="may be given several times")
    add("--image-size", nargs=2, type=int, help="H W of noise images; default: the training set")
    add("--num-boxes", type=int, default=10, help="per noise image")
    add("--batch-size", type=int, help="default: SOLVER.IMS_PER_BATCH")
    add("--peer", metavar="MODULE:FUNCTION", help="see the top of this file")
    add("--repeat", type=int, default=10, help="timed turns of each side")
    add("--warmup", type=int, default=2, help="turns that are not counted")
    add("--threads", type=int, help="default: PyTorch's own choice")
    add("--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1: on a busy machine")
    add("--markdown", action="store_true", help="print rows for BENCHMARKS.md")
    add("--csv", metavar="FOLDER", help="add the rows to a file there")
    add("opts", nargs="*", help="KEY VALUE pairs that change the config")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    for number, config_file in enumerate(args.config_file):
        compare(config_file, args, heading=not args.markdown and number == 0)
    if not args.markdown:
        print(describe_environment())


def compare(config_file: str, args: argparse.Namespace, heading: bool) -> None:
    """Measures a config and prints its rows."""
    opts = args.opts + (["SOLVER.IMS_PER_BATCH", args.batch_size] if args.batch_size else [])
    cfg = load_config(config_file, opts)
    torch.manual_seed(max(cfg.SEED, 0))
    model = Trainer.build_model(cfg)
    # Frozen layers count as loaded: only the time is of interest.
    model.load_state_dict(model.state_dict(), strict=False)
    device, threads = model.device, torch.get_num_threads()
    load = os.getloadavg()[0]
    if args.image_size:
        batch = synthetic_batch(cfg, tuple(args.image_size), args.num_boxes)
    else:
        batch = next(iter(build_train_loader(cfg, seed=max(cfg.SEED, 0))))
    train_step, infer = our_functions(cfg, model)
    training: Sides = {"ours": lambda: train_step(batch)}
    inference: Sides = {"ours": lambda: infer(batch[:1])}
    if args.peer:
        images, targets = seen = seen_by_model(model, batch)
        module, function = args.peer.split(":")
        description = {"config_file": config_file, "opts": opts, "config": cfg}
        peer_step, peer_infer = getattr(importlib.import_module(module), function)(description)
        training["peer"] = lambda: peer_step(images, targets)
        inference["peer"] = lambda: peer_infer(images[:1])
    elif cfg.SOLVER.AMP.ENABLED:
        plain = copy.deepcopy(model)
        plain.precision = None
        peer_step, peer_infer = our_functions(cfg, plain)
        training["peer"] = lambda: peer_step(batch)
        inference["peer"] = lambda: peer_infer(batch[:1])

    sizes = " ".join(sorted({"x".join(map(str, x["image"].shape[-2:])) for x in batch}))
    clock = f"{args.repeat} turns, {args.clock} clock, load {load:.1f} before"
    setting = f"{machine(device)}, {threads} threads, torch {torch.__version__}"
    setting = f"{clock}, {setting}, {datetime.date.today().isoformat()}"
    for name, sides, size in (("inference", inference, 1), ("training step", training, len(batch))):
        losses = {side: run() for side, run in sides.items()}
        if sides is training and not all(map(math.isfinite, losses.values())):
            raise SystemExit(f"a loss is not finite, training was not timed: {losses}")
        if args.peer and not same_inputs(seen, seen_by_model(model, batch)):
            raise SystemExit("the two sides did not read the same images and targets")
        row = {"config": Path(config_file).stem, "what": f"{name}, batch {size}, {sizes}"}
        row |= summary(measure(sides, args.repeat, args.warmup, CLOCKS[args.clock], device))
        for side in ("ours", "peer"):
            peak = peak_extra_mib(sides[side], device) if side in sides else None
            row[f"{side}, MiB"] = None if peak is None else f"{peak:.0f}"
        row["how"] = setting
        if heading and sides is inference:
            print(f"| {' | '.join(row)} |")
        print(markdown(row), flush=True)
        if args.csv:
            add_to_csv(csv_file(args.csv, machine(device), threads), row)
    if not args.markdown:
        boxes = sum(len(x["instances"]) for x in batch)
        print(f"\nmedian [least, most]; {boxes} boxes; first losses {losses}\n")


if __name__ == "__main__":
    main()
