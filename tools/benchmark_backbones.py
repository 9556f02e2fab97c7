#!/usr/bin/env python
"""
What Deformable DETR costs with other backbones: the rows of the table in docs/backbones.md.

Each takes turns with ResNet-50 (A B A B ...), and the ratio is the median of the ratios of
neighbours, in seconds of the processor: what slows the machine down slows both.
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from benchmark import our_functions, synthetic_batch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # measure this clone

from detectron2_ddetr import model_zoo  # noqa: E402
from detectron2_ddetr.analysis.counts import count, model_on_meta  # noqa: E402
from detectron2_ddetr.config import load_config  # noqa: E402
from detectron2_ddetr.engine.trainer import Trainer  # noqa: E402
from detectron2_ddetr.measuring import machine, measure  # noqa: E402
from detectron2_ddetr.toolbox import CfgNode  # noqa: E402

TIMM = """MODEL.BACKBONE.NAME {builder} MODEL.TIMM.NAME {name} MODEL.BACKBONE.FREEZE_AT 0
MODEL.DETR.IN_FEATURES "('stride8', 'stride16', 'stride32')" """
#: What is changed in the config, by the name of the row.
BACKBONES = {
    "ResNet-50": "",
    "ResNet-101": "MODEL.RESNETS.DEPTH 101",
    "EfficientNet-Lite0": """MODEL.BACKBONE.NAME build_efficientnet_lite_backbone
    MODEL.BACKBONE.FREEZE_AT 3 MODEL.DETR.IN_FEATURES "('stride8', 'stride16', 'stride32')" """,
    "Swin-T": TIMM.format(builder="build_timm_backbone", name="swin_tiny_patch4_window7_224"),
    "ConvNeXt-T": TIMM.format(builder="build_timm_backbone", name="convnext_tiny"),
    "ViT-S/16": TIMM.format(builder="build_timm_simple_pyramid", name="vit_small_patch16_224"),
}


def config(name: str) -> CfgNode:
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 1, *shlex.split(BACKBONES[name])]
    return load_config(model_zoo.get_config_file("deformable_detr_R_50_50ep.yaml"), opts)


def step(cfg: CfgNode, size: int):
    model = Trainer.build_model(cfg)
    model.load_state_dict(model.state_dict(), strict=False)  # frozen layers count as loaded
    train_step, _ = our_functions(cfg, model)
    batch = synthetic_batch(cfg, (size, size), 10)
    return lambda: train_step(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("names", nargs="*", choices=[[], *BACKBONES], help="default: all")
    parser.add_argument("--size", type=int, default=640, help="height and width, px")
    parser.add_argument("--repeat", type=int, default=3, help="timed turns; 0 only counts")
    args = parser.parse_args()
    device = torch.device("cpu")
    for name in args.names or BACKBONES:
        parts = {part.name: part for part in count(model_on_meta(config(name)), (args.size,) * 2)}
        backbone, whole = parts["backbone"], parts[""]
        cells = [f"{x / 1e6:.1f} M" for x in (backbone.parameters, whole.parameters)]
        cells += [f"{x / 1e9:.1f} G" for x in (backbone.macs, whole.macs)]
        if args.repeat and name != "ResNet-50":
            sides = {key: step(config(key), args.size) for key in ("ResNet-50", name)}
            seconds = measure(sides, args.repeat, 1, time.process_time, device)
            ratios = [b / a for a, b in zip(seconds["ResNet-50"], seconds[name])]
            cells += [f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"]
        print("|", " | ".join([name, *cells]), "|", flush=True)
    print(f"{machine(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
