"""The command `ddetr export`: its options, and what it says."""

import argparse
import logging
from typing import Any

from ..engine.box_metrics import summary_line
from ..engine.run import take_inputs
from ..engine.trained_model import load_trained_model, require_weights
from ..errors import InputError
from ..toolbox import CfgNode
from .exporting import PRECISIONS, export_model
from .formats import FORMATS
from .samples import given_samples, samples_of_config

logger = logging.getLogger(__name__)

EXAMPLE = """example: ddetr export output/first --format onnx --output first.onnx

The file is compared with the model on the first test set of the run, or on the images that are
named. KEY VALUE pairs change the config and come last.
"""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """All but the run, the images and the KEY VALUE pairs, which are words without dashes."""
    take_inputs(parser, "ddetr export RUN [IMAGE ...] [options] [KEY VALUE ...]", EXAMPLE)
    add = parser.add_argument
    add("--format", choices=FORMATS, required=True, help="of the file")
    add("--output", metavar="FILE", required=True, help="the report is FILE.json")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of all images, which are fitted into it; default: any size",
    )
    add("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    add("--truth", metavar="FILE", help="COCO json of the images: AP before and after")
    add("--num-images", type=int, default=100, metavar="N", help="to compare on; default: 100")


def export(cfg: CfgNode, args: argparse.Namespace) -> None:
    """
    Args:
        cfg: with MODEL.WEIGHTS.
        args: of :func:`add_export_arguments`, and `inputs`, a list.

    Raises:
        MissingFileError, InputError: for what cannot be exported, and where the file differs.
    """
    if args.num_images < 1:
        raise InputError(f"--num-images is {args.num_images}, but must be at least 1")
    if args.truth and not args.inputs:
        raise InputError("--truth is the ground truth of images that are named: name them")
    require_weights(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"  # where the file is made and compared
    cfg.freeze()
    trained = load_trained_model(cfg)
    if args.inputs:
        samples = given_samples(args.inputs, args.truth, trained.class_names, args.num_images)
    else:
        samples = samples_of_config(cfg, args.num_images)
    report = export_model(
        cfg, trained, args.output, samples,
        format=args.format, size=args.size, precision=args.precision,
    )  # fmt: skip
    for line in lines_of(report):
        logger.info(line)
    logger.info(f"Wrote {args.output} and {args.output}.json")


def lines_of(report: dict[str, Any]) -> list[str]:
    """What a report says, in short."""
    found = report["check"]
    if "shapes_of_attention" in found:
        nodes = len(found["shapes_of_attention"])
        return [f"{nodes} nodes of TensorRT's plugin, whose shapes fit; nothing here runs them"]
    lines = [
        f"{found['detections']} detections in {found['images']} images: "
        f"{found['share_within_tolerance']:.1%} within {found['tolerance']:g}; boxes differ by at "
        f"most {found['largest_box_difference_px']:.2g} px, scores by at most "
        f"{found['largest_score_difference']:.2g}"
    ]
    for when, figures in report.get("ap", {}).items():
        if figures is not None:
            lines.append(f"{when}: {summary_line(figures)}")
    return lines
