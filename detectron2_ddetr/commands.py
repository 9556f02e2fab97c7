"""What the subcommands of `ddetr` do with their arguments."""

import argparse
import functools
import os
import sys
import tempfile

from . import model_zoo
from .analysis.attention_cost import setting_of
from .analysis.report import analyze, default_size
from .checkpoint.convert import convert_file
from .checkpoint.doctor import describe, examine
from .collect_env import describe_environment
from .config import load_config
from .data.coco_json import read_coco_json
from .data.dataset_contents import check_coco_jsons
from .data.folders import as_coco, layout_of
from .demo.command import predict as find_in_images
from .engine import run
from .engine.device import check_device
from .engine.launch import run_in_processes
from .engine.run_folder import require_folder
from .engine.trained_model import files_of_run, with_weights
from .errors import InputError, explained
from .export.command import export as export_to_file
from .export.formats import is_exported
from .export.runner import load_predictor
from .predictor import Predictor
from .toolbox import CfgNode, get_cfg, setup_logger
from .visualization.attention_cost import draw_attention_cost
from .visualization.comparison import compare_runs
from .visualization.curves_hook import DrawCurves
from .visualization.inspection.command import inspect as look_into_images
from .visualization.predictions import visualize_run
from .visualization.training_images import DrawTrainingImages, draw_training_images
from .visualization.training_predictions import draw_predictions


def run_everywhere(args: argparse.Namespace) -> None:
    """:func:`run.main` in all processes of a training or an evaluation."""
    args.config_file = find_config(args.config_file)
    run_in_processes(_run_here, args)


def _run_here(args: argparse.Namespace) -> None:
    with explained(args.traceback):
        run.main(args, [DrawCurves(), DrawTrainingImages()], [draw_predictions])


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


def evaluate(args: argparse.Namespace) -> None:
    # A folder of its own: the config and the log of the run stay those of its training.
    read_run(args, output="eval")
    run_everywhere(args)


def visualize(args: argparse.Namespace) -> None:
    read_run(args)
    setup_logger(name="detectron2_ddetr")
    if args.output:
        require_folder(args.output, make=True)
    cfg = run.load(args)
    visualize_run(cfg, args.output or cfg.OUTPUT_DIR, args.num_images, args.score_threshold)


def predict(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    if not args.config_file and args.inputs and is_exported(args.inputs[0]):
        if args.weights:
            raise InputError(f"{args.inputs[0]} has its own weights: leave --weights out")
        make = functools.partial(load_predictor, args.inputs.pop(0))
    else:
        make = functools.partial(Predictor, _config_of_inputs(args))
    find_in_images(make, args)


def export(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    export_to_file(_config_of_inputs(args), args)


def inspect(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    cfg = _config_of_inputs(args)
    args.output = args.output or os.path.join(cfg.OUTPUT_DIR, "inspect")
    require_folder(args.output, make=True)
    look_into_images(cfg, args.inputs, args)


def _config_of_inputs(args: argparse.Namespace) -> CfgNode:
    """From words without dashes: the run, its inputs, and the KEY VALUE pairs."""
    # The first word that is a config key, and no file, begins the KEY VALUE pairs.
    words, keys = args.inputs, set(get_cfg())
    is_key = (word.split(".")[0] in keys and not os.path.exists(word) for word in words)
    end = next((number for number, key in enumerate(is_key) if key), len(words))
    args.inputs, args.opts = words[:end], words[end:]
    if not args.config_file:
        args.run = args.inputs.pop(0) if args.inputs else ""
    read_run(args)
    return load_config(args.config_file, with_weights(args.opts, args.weights))


def convert(args: argparse.Namespace) -> None:
    setup_logger(name="detectron2_ddetr")
    if args.output is None:
        sys.stdout.write(describe(examine(args.file)) + "\n")
        return
    require_folder(os.path.dirname(os.path.abspath(args.output)))
    options = {"classes": args.classes, "licence": args.licence, "dilated": args.dc5}
    options |= {"inference_only": args.inference_only, "num_queries": args.num_queries}
    convert_file(args.file, args.output, to=args.to, **options)


def check(args: argparse.Namespace) -> None:
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


def compare(args: argparse.Namespace) -> None:
    require_folder(os.path.dirname(os.path.abspath(args.output)))
    setup_logger(name="detectron2_ddetr")
    compare_runs(args.runs, args.output)
    sys.stdout.write(f"Wrote {args.output}\n")


def count(args: argparse.Namespace) -> None:
    if args.picture:
        require_folder(os.path.dirname(os.path.abspath(args.picture)))
    read_run(args)
    cfg = load_config(args.config_file, args.opts)
    if args.repeat:
        check_device(cfg)
    size = tuple(args.image_size or default_size(cfg))
    sys.stdout.write(analyze(cfg, size, args.repeat) + "\n")
    if args.picture:
        draw_attention_cost(setting_of(cfg), args.picture)
        sys.stdout.write(f"Wrote {args.picture}\n")


def env(args: argparse.Namespace) -> None:
    sys.stdout.write(describe_environment() + "\n")
