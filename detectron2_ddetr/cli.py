"""The command `ddetr`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence

from . import model_zoo
from .checkpoint import official
from .collect_env import describe_environment
from .config import load_config
from .data.coco_json import read_coco_json
from .data.dataset_contents import check_coco_jsons
from .data.folders import as_coco, layout_of
from .demo.command import add_predict_arguments, predict
from .engine import run
from .engine.launch import run_in_processes
from .engine.run_folder import require_folder
from .engine.trained_model import files_of_run, with_weights
from .errors import InputError, explained
from .toolbox import get_cfg, setup_logger
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
  ddetr predict output/first photo.jpg holidays/ clip.mp4
  ddetr compare output/first output/second

A config is a file or a name of the model zoo. KEY VALUE pairs change it and come last.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the arguments say; an error that explains itself is shown without a traceback."""
    words, folder = list(sys.argv[1:] if arguments is None else arguments), ""
    # Taken out by hand: for argparse, the first word that is no option begins the KEY VALUE pairs.
    if len(words) > 1 and words[0] in ("eval", "visualize") and not words[1].startswith("-"):
        folder = words.pop(1)
    parser = _parser()
    args, others = parser.parse_known_args(words)
    # A number below zero may be the value of a key.
    is_option = [word[:1] == "-" and not word[1:2].isdigit() for word in others]
    if wrong := [w for w, o in zip(others, is_option) if o or args.command is not _predict]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    args.run, args.inputs = folder, others
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
    if args.config_file:
        args.config_file = find_config(args.config_file)
        return
    args.config_file, weights = files_of_run(args.run, args.weights)
    if "MODEL.WEIGHTS" not in args.opts[::2]:
        args.weights = weights
    args.opts = ["OUTPUT_DIR", os.path.join(args.run, output), *args.opts]


def _evaluate(args: argparse.Namespace) -> None:
    # A folder of its own: the config and the log of the run stay those of its training.
    read_run(args, output="eval")
    run_everywhere(args)


def _visualize(args: argparse.Namespace) -> None:
    read_run(args)
    setup_logger(name="detectron2_ddetr")
    if args.output:
        require_folder(args.output, make=True)
    cfg = run.load(args)
    visualize_run(cfg, args.output or cfg.OUTPUT_DIR, args.num_images, args.score_threshold)


def _predict(args: argparse.Namespace) -> None:
    # The first word that is a config key, and no file, begins the KEY VALUE pairs.
    words, keys = args.inputs, set(get_cfg())
    is_key = (word.split(".")[0] in keys and not os.path.exists(word) for word in words)
    end = next((number for number, key in enumerate(is_key) if key), len(words))
    args.inputs, args.opts = words[:end], words[end:]
    if not args.config_file:
        args.run = args.inputs.pop(0) if args.inputs else ""
    read_run(args)
    setup_logger(name="detectron2_ddetr")
    cfg = load_config(args.config_file, with_weights(args.opts, args.weights))
    predict(cfg, args)


def _convert(args: argparse.Namespace) -> None:
    require_folder(os.path.dirname(os.path.abspath(args.converted)))
    setup_logger(name="detectron2_ddetr")
    official.convert_file(args.official, args.converted, keep_91_classes=args.keep_91_classes)


def _check(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    if args.picture:
        require_folder(os.path.dirname(os.path.abspath(args.picture)))
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
    require_folder(os.path.dirname(os.path.abspath(args.output)))
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
    find = add(
        "predict", _predict, "detect in images, videos or before a webcam with a run (first)"
    )
    add_predict_arguments(find)
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
    convert = add("convert", _convert, "convert a checkpoint of the official code")
    convert.add_argument("official", help="the .pth file")
    convert.add_argument("converted", help="file to write, for MODEL.WEIGHTS")
    convert.add_argument(
        "--keep-91-classes",
        action="store_true",
        help="keep the 91 rows of the class heads, indexed by COCO category id, instead of the "
        "80 contiguous classes (needs MODEL.DETR.NUM_CLASSES 91)",
    )
    for command in (
        visualize,
        find,
        check,
        compare,
        convert,
        add("env", _env, "print what is in use"),
    ):
        command.add_argument("--traceback", action="store_true", help="show where an error arose")
    visualize.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser


if __name__ == "__main__":
    main()
