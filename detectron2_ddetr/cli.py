"""The command `ddetr`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from . import commands
from .checkpoint.projects import PROJECTS
from .demo.command import add_predict_arguments
from .engine import run
from .errors import explained
from .export.command import add_export_arguments
from .visualization.inspection.command import add_inspect_arguments

EPILOG = """
examples:
  ddetr train --config-file quick_start.yaml
  ddetr train --config-file deformable_detr_R_50_50ep.yaml --num-gpus 8 OUTPUT_DIR output/first
  ddetr train --config-file quick_start.yaml --train train.json images/ --val val.json images/
  ddetr eval output/first
  ddetr visualize output/first
  ddetr inspect output/first photo.jpg
  ddetr predict output/first photo.jpg holidays/ clip.mp4
  ddetr export output/first --format onnx --output first.onnx
  ddetr compare output/first output/second
  ddetr analyze --config-file deformable_detr_R_50_50ep.yaml

A config is a file or a name of the model zoo. KEY VALUE pairs change it and come last.
"""


CONVERT_EPILOG = """
COCO's classes get the rows that the other project gives them: 80 in their order in ddetr and
detrex, 91 by category id in official and transformers. --classes same keeps the rows.

examples:
  ddetr convert r50_deformable_detr-checkpoint.pth
  ddetr convert r50_deformable_detr-checkpoint.pth converted.pth --licence Apache-2.0
  ddetr convert output/first/model_best.pth folder --to transformers
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the arguments say; an error that explains itself is shown without a traceback."""
    words, folder = list(sys.argv[1:] if arguments is None else arguments), ""
    # Taken out by hand: for argparse, the first word that is no option begins the KEY VALUE pairs.
    if (
        len(words) > 1
        and words[0] in ("eval", "visualize", "analyze")
        and not words[1].startswith("-")
    ):
        folder = words.pop(1)
    parser = _parser()
    args, others = parser.parse_known_args(words)
    # A number below zero may be the value of a key.
    takes_inputs = args.command in (commands.predict, commands.inspect, commands.export)
    is_option = [word[:1] == "-" and not word[1:2].isdigit() for word in others]
    if wrong := [w for w, o in zip(others, is_option) if o or not takes_inputs]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    args.run, args.inputs = folder, others
    command = vars(args).pop("command")
    with explained(args.traceback):
        command(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddetr", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable, summary: str, **options) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=summary, **options)
        added.set_defaults(command=command)
        return added

    def add_run(name: str, command: Callable, summary: str, **defaults) -> None:
        add(name, command, summary, parents=[run.run_argument_parser()], add_help=False)
        subparsers.choices[name].set_defaults(**defaults)

    add_run("train", commands.run_everywhere, "train from a config")
    add_run(
        "eval",
        commands.evaluate,
        "evaluate the folder of a run (first), or a config",
        eval_only=True,
    )

    visualize = add(
        "visualize", commands.visualize, "draw predictions, curves and confusions of a run (first)"
    )
    visualize.add_argument(
        "--config-file", default="", help="instead of the folder of a run, with MODEL.WEIGHTS"
    )
    run.add_given_arguments(visualize)
    visualize.add_argument(
        "--num-images",
        type=int,
        default=4,
        help="of the first test set, chosen to show all classes",
    )
    visualize.add_argument("--score-threshold", type=float, default=0.4, help="of what is drawn")
    visualize.add_argument("--output", help="folder of the pictures; default: that of the run")
    look = add("inspect", commands.inspect, "draw what a run (first) looks at in images, and why")
    add_inspect_arguments(look)
    find = add(
        "predict",
        commands.predict,
        "detect in images, videos or before a webcam with a run (first)",
    )
    add_predict_arguments(find)
    exporter = add("export", commands.export, "write the model of a run (first) to a file")
    add_export_arguments(exporter)
    check = add("check", commands.check, "check a data set, and that its images are there")
    check.add_argument(
        "data", help="a COCO json, or a folder with the layout of COCO, YOLO or Pascal VOC"
    )
    check.add_argument("images", nargs="?", help="of a json, the folder of its images")
    check.add_argument(
        "--picture",
        metavar="FILE",
        help="write training images with their boxes, augmented as in training, to this .jpg",
    )
    check.add_argument(
        "--config-file",
        default="deformable_detr_R_50_50ep.yaml",
        help="says how many boxes of an image can be found, and how --picture is augmented; "
        "default: %(default)s",
    )
    compare = add("compare", commands.compare, "draw the curves of several runs into one picture")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    compare.add_argument("--output", default="compare.png", help="default: %(default)s")
    analysis = add(
        "analyze",
        commands.count,
        "parameters, FLOPs, time and memory of a run (first), or a config",
        epilog="example: ddetr analyze output/first --image-size 800 1120 --picture attention.png",
    )
    analysis.add_argument("--config-file", default="", help="instead of the folder of a run")
    analysis.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="default: INPUT.MIN_SIZE_TEST, and 1.4 times as wide",
    )
    analysis.add_argument(
        "--repeat", type=int, default=5, help="timed runs; 0 only counts, in a second"
    )
    analysis.add_argument(
        "--picture",
        metavar="FILE",
        help="draw how dense and deformable attention grow with the image, as .png",
    )
    analysis.set_defaults(weights="")  # only what they cost is of interest
    convert = add(
        "convert",
        commands.convert,
        "say what a checkpoint of Deformable DETR is, or convert it",
        epilog=CONVERT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("file", help="or the folder of a model of Hugging Face transformers")
    convert.add_argument("output", nargs="?", help="file to write; a folder for transformers")
    convert.add_argument("--to", choices=PROJECTS, default="ddetr", help="default: %(default)s")
    convert.add_argument(
        "--classes",
        default="",
        metavar="JSON",
        help="a list of names, or a COCO json: the class rows to keep; or: same (see below)",
    )
    convert.add_argument("--licence", help="of the weights, to be said in the output")
    convert.add_argument(
        "--dc5",
        action=argparse.BooleanOptionalAction,
        help="dilated last stage, where the file does not say so",
    )
    convert.add_argument(
        "--inference-only",
        action="store_true",
        help="leave out what only training needs",
    )
    convert.add_argument(
        "--num-queries",
        type=int,
        metavar="N",
        help="then, of H-DETR: that detect, mostly 300",
    )
    for command in (
        visualize,
        look,
        check,
        compare,
        analysis,
        find,
        exporter,
        convert,
        add("env", commands.env, "print what is in use"),
    ):
        command.add_argument("--traceback", action="store_true", help="show where an error arose")
    for command in (visualize, analysis):
        command.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser


if __name__ == "__main__":
    main()
