#!/usr/bin/env python
"""
Kills a tiny training at random moments (SIGKILL), again and again, and resumes it each time.

After each kill every checkpoint of the folder must load, and the last one must not be older than
before. In the end the training must be, to the bit, the one that nobody has killed. Exit status 1
if it is not so.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # try this clone

from detectron2_ddetr import model_zoo  # noqa: E402
from detectron2_ddetr.checkpoint.files import last_checkpoint, load_checkpoint_file  # noqa: E402
from detectron2_ddetr.engine import run  # noqa: E402

FEATURES = {
    "plain": [],
    "accumulation": ["SOLVER.ACCUMULATION_STEPS", "2"],
    "EMA": ["SOLVER.EMA_DECAY", "0.9"],
    "bfloat16": ["SOLVER.AMP.ENABLED", "True"],
    "activation checkpointing": [
        word
        for part in ("BACKBONE", "ENCODER", "DECODER")
        for word in (f"MODEL.DETR.ACTIVATION_CHECKPOINTING.{part}", "True")
    ],
}
CONFIG = "quick_start_from_scratch.yaml"
THIN = """MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 8
    MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.DETR.HIDDEN_DIM 32 MODEL.DETR.ENC_LAYERS 1
    MODEL.DETR.DEC_LAYERS 2 MODEL.DETR.DIM_FEEDFORWARD 32 MODEL.DETR.NUM_QUERIES 8
    INPUT.MIN_SIZE_TRAIN (64,) SOLVER.IMS_PER_BATCH 2 TEST.EVAL_PERIOD 0 SEED 1 DATASETS.TEST ()
    SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR SOLVER.WARMUP_ITERS 0
    SOLVER.CHECKPOINT_PERIOD 1 SOLVER.CHECKPOINTS_TO_KEEP 3""".split()


def write_data(folder: Path) -> list[str]:
    """Four images with a box each, as a COCO json; the words that name them."""
    images, annotations = [], []
    for i in range(4):
        pixels = np.full((64, 80, 3), 40 * i, np.uint8)
        pixels[10 * i : 10 * i + 20, 5:40] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 80})
        box = {"bbox": [5, 10 * i, 35, 20], "area": 700, "iscrowd": 0, "category_id": 1}
        annotations.append({"id": i + 1, "image_id": i, **box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "white"}]
    (folder / "a.json").write_text(json.dumps(content))
    return ["--train", str(folder / "a.json"), str(folder)]


def train(words: list[str], log: Path) -> int:
    """A training in a child, which need not import anything anew; its process id."""
    child = os.fork()
    if child:
        return child
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        run.main(run.run_argument_parser().parse_args(words))
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)


def finish(words: list[str], log: Path) -> None:
    if os.waitpid(train(words, log), 0)[1]:
        raise SystemExit(f"a training failed: {log.read_text()[-2000:]}")


def checked(folder: Path) -> int:
    """The iteration of the last checkpoint, -1 without one; all that there are must load."""
    states = {p.name: load_checkpoint_file(str(p)) for p in folder.glob("*.pth")}
    path = last_checkpoint(str(folder))
    return states[Path(path).name]["trainer"]["iteration"] if path else -1


def same(first, other) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, other)
    if isinstance(first, dict):
        return first.keys() == other.keys() and all(same(first[k], other[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(other) and all(map(same, first, other))
    return first == other


def try_feature(name: str, kills: int, longest: float, folder: Path) -> str:
    """Kills and resumes; a line of what was seen."""
    data = folder / "data"
    data.mkdir(parents=True)
    words = ["--config-file", model_zoo.get_config_file(CONFIG), *write_data(data)]
    words += ["--resume", *THIN, *FEATURES[name]]
    killed, seen, log = folder / "killed", [-1], folder / "log.txt"

    def command(output: Path, iterations: int) -> list[str]:
        return [*words, "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(iterations)]

    for _ in range(kills):
        child = train(command(killed, 10**6), log)
        time.sleep(random.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            raise SystemExit(
                f"{name}: it had ended before it was killed: {log.read_text()[-2000:]}"
            )
        seen.append(checked(killed))
        if seen[-1] < seen[-2]:
            raise SystemExit(f"{name}: iteration {seen[-2]} was saved, now the last is {seen[-1]}")
    iterations = seen[-1] + 3
    for output in (killed, folder / "whole"):
        finish(command(output, iterations), log)
    ends = [load_checkpoint_file(last_checkpoint(str(f))) for f in (killed, folder / "whole")]
    for key in ("model", "trainer"):
        ours, theirs = (end[key] for end in ends)
        if key == "trainer":
            ours, theirs = (
                {k: v for k, v in x.items() if k in ("_trainer", "iteration", "images")}
                for x in (ours, theirs)
            )
        if not same(ours, theirs):
            raise SystemExit(f"{name}: the {key} is another than without kills")
    moved = sum(b > a for a, b in zip(seen, seen[1:]))
    return (
        f"{name}: {kills} kills, {moved} of them after new checkpoints, {iterations} iterations; "
        "all checkpoints load, and the end is that of an uninterrupted training to the bit"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("features", nargs="*", metavar="FEATURE", help=f"of {', '.join(FEATURES)}")
    parser.add_argument("--kills", type=int, default=20, help="of each; default: %(default)s")
    parser.add_argument("--longest", type=float, default=5.0, help="until a kill, s")
    parser.add_argument("--seed", type=int, help="of the moments")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    random.seed(seed)
    print(f"seed {seed}", flush=True)
    for name in args.features or FEATURES:
        with tempfile.TemporaryDirectory(prefix="ddetr_kill_") as folder:
            print(try_feature(name, args.kills, args.longest, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
