#!/usr/bin/env python
"""
Seconds and memory of the matcher for all layers of a training step.

"plain" is a loop over layers and images, with a transfer for each layer; "together" is what the
criterion does. The two take turns, must agree on every assignment, and the ratio is the median of
the ratios of neighbours. "scipy" is the part of both that solves the assignment.
"""

import argparse
import datetime
import itertools
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # measure this clone

from detectron2_ddetr.measuring import machine, measure, peak_extra_mib  # noqa: E402
from detectron2_ddetr.modeling import HungarianMatcher, LossTask  # noqa: E402
from detectron2_ddetr.modeling.matcher import NON_FINITE_COST  # noqa: E402


def step(batch: int, queries: int, boxes: int, layers: int, device: torch.device) -> list[LossTask]:
    """Random predictions of 80 classes, and targets that all layers share."""
    random = torch.Generator(device).manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random, device=device)

    targets = [
        {"labels": (80 * rand(boxes)).long(), "boxes": 0.1 + 0.4 * rand(boxes, 4)}
        for _ in range(batch)
    ]
    return [
        LossTask(
            "",
            {
                "pred_logits": 4 * rand(batch, queries, 80) - 6,
                "pred_boxes": 0.1 + 0.4 * rand(batch, queries, 4),
            },
            targets,
            None,
        )
        for _ in range(layers)
    ]


@torch.no_grad()
def plain_costs(matcher: HungarianMatcher, tasks: list[LossTask]) -> list[np.ndarray]:
    """Of each layer and image (Q, T), on the CPU."""
    found = []
    for task in tasks:
        images = zip(task.outputs["pred_logits"], task.outputs["pred_boxes"], task.targets)
        costs = [matcher.cost(*image) for image in images]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        flat[~np.isfinite(flat)] = NON_FINITE_COST
        ends = np.cumsum([cost.numel() for cost in costs])[:-1]
        found += [x.reshape(cost.shape) for x, cost in zip(np.split(flat, ends), costs)]
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    add = parser.add_argument
    add("--batch-size", nargs="+", type=int, default=[2, 16])
    add("--queries", nargs="+", type=int, default=[300, 900])
    add("--boxes", nargs="+", type=int, default=[10, 100, 500], help="of each image")
    add("--layers", type=int, default=7)
    add("--repeat", type=int, default=5, help="timed turns of each side")
    add("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args(arguments)
    clock = time.process_time if args.device.type == "cpu" else time.perf_counter
    matcher = HungarianMatcher()
    print("| batch | queries | boxes | plain, ms | together, ms | together / plain | scipy, ms | "
          "plain, MiB | together, MiB |\n" + "|---" * 9 + "|")  # fmt: skip
    for sizes in itertools.product(args.batch_size, args.queries, args.boxes):
        tasks = step(*sizes, args.layers, args.device)
        costs = plain_costs(matcher, tasks)
        sides = {
            "plain": lambda: [linear_sum_assignment(x) for x in plain_costs(matcher, tasks)],
            "together": lambda: matcher.match(tasks),
            "scipy": lambda: [linear_sum_assignment(x) for x in costs],
        }
        found = [pair for indices in sides["together"]() for pair in indices]
        if any(
            (a != b.numpy()).any() for x, y in zip(sides["plain"](), found) for a, b in zip(x, y)
        ):
            raise SystemExit(f"assignments differ at batch, queries, boxes {sizes}")
        seconds = measure(sides, args.repeat, 1, clock, args.device)
        ratio = statistics.median(b / a for a, b in zip(seconds["plain"], seconds["together"]))
        plain, together, scipy = (1e3 * statistics.median(x) for x in seconds.values())
        peaks = (peak_extra_mib(sides[name], args.device) for name in ("plain", "together"))
        cells = [
            *map(str, sizes),
            f"{plain:.1f}",
            f"{together:.1f}",
            f"{ratio:.2f}",
            f"{scipy:.1f}",
        ]
        print("|", " | ".join(cells + ["" if x is None else f"{x:.0f}" for x in peaks]), "|")
    today = datetime.date.today().isoformat()
    print(f"\n{args.layers} layers, {args.repeat} turns, {machine(args.device)}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, {today}")  # fmt: skip


if __name__ == "__main__":
    main()
