"""
Does memory grow while a training goes on? Trains a tiny model on the blood cells for 1000
iterations with 20 evaluations, and prints the slope of resident memory over the last 800:

    python tools/benchmark_leaks.py

A slope of one float32 an image would be 0.008 KiB an iteration; a graph that is kept is megabytes.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from detectron2_ddetr import Trainer, load_config
from detectron2_ddetr.toolbox import HookBase

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/deformable_detr/quick_start_from_scratch.yaml"
TINY = """
    INPUT.MIN_SIZE_TRAIN 64 INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 96
    MODEL.DETR.HIDDEN_DIM 32 MODEL.DETR.NHEADS 2 MODEL.DETR.ENC_LAYERS 1 MODEL.DETR.DEC_LAYERS 2
    MODEL.DETR.NUM_QUERIES 60 MODEL.DETR.DIM_FEEDFORWARD 32 SOLVER.IMS_PER_BATCH 2
""".split()


class ResidentMemory(HookBase):
    """KiB after each iteration."""

    def __init__(self):
        self.kib: list[float] = []

    def after_step(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.kib.append(pages * os.sysconf("SC_PAGE_SIZE") / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=1000)
    iterations = parser.parse_args().iterations
    memory = ResidentMemory()
    with tempfile.TemporaryDirectory() as folder:
        schedule = ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", iterations,
                    "TEST.EVAL_PERIOD", iterations // 20, "OUTPUT_DIR", folder]  # fmt: skip
        trainer = Trainer(load_config(str(ROOT / CONFIG), [*TINY, *schedule]))
        trainer.register_hooks([memory])
        trainer.resume_or_load(resume=False)
        trainer.train()
    settled = np.array(memory.kib[iterations // 5 :])
    slope = np.polyfit(np.arange(len(settled)), settled, 1)[0]
    print(
        f"resident memory: {settled[0]:.0f} KiB after {iterations // 5} iterations, "
        f"{settled[-1]:.0f} KiB after {iterations}; slope {slope:.3f} KiB an iteration"
    )


if __name__ == "__main__":
    main()
