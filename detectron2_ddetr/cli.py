"""The command `ddetr`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence

from . import model_zoo
from .checkpoint.convert import convert_file
from .checkpoint.doctor import describe, examine
from .checkpoint.files import last_checkpoint
from .checkpoint.projects import PROJECTS
from .collect_env import describe_environment
from .config import load_config
from .data.coco_json import read_coco_json
from .data.dataset_contents import check_coco_jsons
from .data.folders import as_coco, layout_of
from .engine import run
from .engine.launch import run_in_processes
from .errors import InputError, MissingFileError, explained
from .toolbox import setup_logger
from .visualization.comparison import compare_runs
from .visualization.curves_hook import DrawCurves
from .visualization.predictions import visualize_run
from .visualization.training_images import DrawTrainingImages, draw_training_images

EPILOG = """
examples:
  ddetr train --config-file quick_start.yaml
  ddetr train --config-file deformable_detr_R_50_50ep.yaml --num-gpus 8 OUTPUT_DIR output/first
  ddetr train --config-file quick_start.yaml --train train.json images/ --val val.json images/
  ddetr eval output/first
  ddetr visualize output/first
  ddetr compare output/first output/second

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
    if len(words) > 1 and words[0] in ("eval", "visualize") and not words[1].startswith("-"):
        folder = words.pop(1)
    args = _parser().parse_args(words)
    args.run = folder
    command = vars(args).pop("command")
    with explained(args.traceback):
        command(args)


def run_everywhere(args: argparse.Namespace) -> None:
    """:func:`run.main` in all processes of a training or an evaluation."""
    args.config_file = find_config(args.config_file)
    run_in_processes(_run_here, args)


def _run_here(args: argparse.Namespace) -> None:
    with explained(args.traceback):
        run.main(args, [DrawCurves(), DrawTrainingImages()])


def find_config(config_file: str) -> str:
    """A path as it is, or else the path of a config of the model zoo."""
    if not config_file:
        raise InputError("--config-file is missing: give a YAML file or a name of the model zoo")
    return config_file if os.path.isfile(config_file) else model_zoo.get_config_file(config_file)


def read_run(args: argparse.Namespace, output: str = "") -> None:
    """
    Takes config and weights from the folder of a run, unless there is a --config-file.

    Args:
        args: `config_file` and `opts` become those of `run`, with its last checkpoint.
        output: the folder inside the run's to write to.
    """
    folder = args.run
    if args.config_file:
        args.config_file = find_config(args.config_file)
        return
    if not os.path.isdir(folder):
        what = f"there is no folder {folder}" if folder else "nothing is given"
        raise MissingFileError(f"{what}: name the folder of a run first, or give --config-file")
    for name in ("config.yaml", "last_checkpoint"):
        if not os.path.isfile(os.path.join(folder, name)):
            raise MissingFileError(
                f"{folder} has no {name}, so it is not the folder of a run; that is what "
                "OUTPUT_DIR was in training"
            )
    args.config_file = os.path.join(folder, "config.yaml")
    if args.weights is None and "MODEL.WEIGHTS" not in args.opts[::2]:
        args.weights = last_checkpoint(folder)
    args.opts = ["OUTPUT_DIR", os.path.join(folder, output), *args.opts]


def _evaluate(args: argparse.Namespace) -> None:
    # A folder of its own: the config and the log of the run stay those of its training.
    read_run(args, output="eval")
    run_everywhere(args)


def _visualize(args: argparse.Namespace) -> None:
    read_run(args)
    setup_logger(name="detectron2_ddetr")
    if args.output:
        _require_folder(args.output, make=True)
    cfg = run.load(args)
    visualize_run(cfg, args.output or cfg.OUTPUT_DIR, args.num_images, args.score_threshold)


def _require_folder(folder: str, *, make: bool = False) -> None:
    """Before work is done that is to be written there."""
    try:
        if make:
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder!r} cannot be made: {error.strerror}") from error
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InputError(f"folder {folder!r} does not exist, or cannot be written to")


def _convert(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    if args.output is None:
        sys.stdout.write(describe(examine(args.file)) + "\n")
        return
    _require_folder(os.path.dirname(os.path.abspath(args.output)))
    options = {"classes": args.classes, "licence": args.licence, "dilated": args.dc5}
    convert_file(args.file, args.output, to=args.to, **options)


def _check(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    if args.picture:
        _require_folder(os.path.dirname(os.path.abspath(args.picture)))
    if args.images is None and args.data.endswith(".json"):
        raise InputError(f"{args.data}: name the folder of its images too")
    cfg = load_config(find_config(args.config_file))
    with tempfile.TemporaryDirectory(prefix="ddetr_check_") as folder:
        jsons = {args.data: (args.data, args.images)}
        if args.images is None:
            splits = layout_of(args.data).splits or ["train"]
            jsons = {split: as_coco(args.data, split, folder) for split in splits}
        sys.stdout.write(check_coco_jsons(jsons, cfg) + "\n")
        if args.picture:
            _draw_training_images(args, *next(iter(jsons.values())))


def _draw_training_images(args: argparse.Namespace, json_file: str, image_root: str) -> None:
    """Writes --picture, of the images of one json."""
    data = read_coco_json(json_file, image_root)
    opts = ["MODEL.DETR.NUM_CLASSES", len(data.class_names)]
    cfg = load_config(find_config(args.config_file), opts)
    dataset_dicts = data.dataset_dicts(image_root, None)
    draw_training_images(cfg, dataset_dicts, data.class_names, args.picture)


def _compare(args: argparse.Namespace) -> None:
    _require_folder(os.path.dirname(os.path.abspath(args.output)))
    setup_logger(name="detectron2_ddetr")
    compare_runs(args.runs, args.output)
    sys.stdout.write(f"Wrote {args.output}\n")


def _env(args: argparse.Namespace) -> None:
    sys.stdout.write(describe_environment() + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddetr", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable, summary: str, **options) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, **options)
        added.set_defaults(command=command)
        return added

    def add_run(name: str, command: Callable, summary: str, **defaults) -> None:
        add(name, command, summary, parents=[run.run_argument_parser()], add_help=False)
        commands.choices[name].set_defaults(**defaults)

    add_run("train", run_everywhere, "train from a config")
    add_run("eval", _evaluate, "evaluate the folder of a run (first), or a config", eval_only=True)

    visualize = add(
        "visualize", _visualize, "draw predictions, curves and confusions of a run (first)"
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
    check = add("check", _check, "check a data set, and that its images are there")
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
    compare = add("compare", _compare, "draw the curves of several runs into one picture")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    compare.add_argument("--output", default="compare.png", help="default: %(default)s")
    convert = add(
        "convert",
        _convert,
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
        help="whether the last stage is dilated, where the file does not say",
    )
    for command in (visualize, check, compare, convert, add("env", _env, "print what is in use")):
        command.add_argument("--traceback", action="store_true", help="show where an error arose")
    visualize.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser


if __name__ == "__main__":
    main()
