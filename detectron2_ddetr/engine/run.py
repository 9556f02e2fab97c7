"""One run of the command line: train, or evaluate, in every process that takes part."""

import argparse
import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence

from ..checkpoint.class_names import read_class_names
from ..checkpoint.files import last_checkpoint
from ..config import load_config
from ..config_rules import check_trainer_config
from ..data.class_names import check_datasets
from ..data.dataset_contents import check_contents
from ..data.given_datasets import (
    add_dataset_arguments,
    name_given_datasets,
    use_given_datasets,
)
from ..errors import InputError
from ..toolbox import (
    CfgNode,
    HookBase,
    comm,
    default_argument_parser,
    default_setup,
    describe_toolbox,
    setup_logger,
    verify_results,
)
from .batch_rule import apply_batch_rule
from .box_metrics import summary_lines
from .device import check_device, warn_of_slow_precision
from .dry_run import dry_run
from .evaluator import finite_results
from .run_folder import check_run_folder, kept_unless_done, locked
from .trained_model import load_trained_model, with_weights
from .trainer import Trainer

logger = logging.getLogger("detectron2_ddetr")


def run_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """detectron2's arguments, and those of :func:`add_given_arguments`."""
    parser = default_argument_parser(epilog)
    add_given_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train a few steps on the largest images with the most boxes, print memory and time, "
        "and stop; nothing is written",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    return parser


def add_given_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a user gives a run: `--train`, `--val`, `--dataset` and `--weights`."""
    add_dataset_arguments(parser)
    add_weights_argument(parser)


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--weights`, for all that :func:`.trained_model.files_of_run` takes."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="the same as MODEL.WEIGHTS FILE; of the folder of a run also best, for model_best.pth",
    )


def take_inputs(parser: argparse.ArgumentParser, usage: str, example: str) -> None:
    """Makes `parser` that of a command on a trained model and on inputs, words without dashes."""
    parser.usage, parser.epilog = usage, example
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config-file", default="", help="instead of RUN, with --weights")
    add_weights_argument(parser)


def _read_config(args: argparse.Namespace, *, eval_only: bool) -> CfgNode:
    """The config that `args` ask for; what they give in other ways becomes KEY VALUE pairs."""
    name_given_datasets(args, eval_only=eval_only)
    args.opts, args.weights = with_weights(args.opts, args.weights), None
    cfg = load_config(args.config_file, args.opts)
    check_trainer_config(cfg)
    return cfg


def load(args: argparse.Namespace) -> CfgNode:
    """The config that `args` ask for, to evaluate with; its test sets are registered and sound."""
    cfg = _read_config(args, eval_only=True)
    check_device(cfg)
    return use_datasets(cfg, args, eval_only=True)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, check the data sets and start logging, before anything is built."""
    cfg = _read_config(args, eval_only=args.eval_only)
    check_device(cfg, args.num_gpus)
    said = ""
    if not args.eval_only:
        cfg, said = apply_batch_rule(cfg)
        check_trainer_config(cfg)
    if args.dry_run:
        setup_logger(distributed_rank=comm.get_rank(), name="detectron2_ddetr", abbrev_name="ddetr")
        if said:
            logger.info(said)
        return use_datasets(cfg, args, eval_only=False)
    if not args.eval_only and comm.is_main_process():
        check_run_folder(cfg.OUTPUT_DIR, args.resume)
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r}: {error.strerror}") from error
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="detectron2_ddetr", abbrev_name="ddetr")
    logger.info(f"toolbox: {describe_toolbox()}")
    if said:
        logger.info(said)
    return use_datasets(cfg, args, eval_only=args.eval_only)


def use_datasets(cfg: CfgNode, args: argparse.Namespace, *, eval_only: bool) -> CfgNode:
    """The config with the data sets that `args` give, all of them registered and checked."""
    cfg = cfg.clone()
    cfg.defrost()
    if eval_only and not (cfg.DATASETS.TEST or args.dataset):
        raise InputError("DATASETS.TEST is empty: add DATASETS.TEST with the name of a data set")
    for note in use_given_datasets(cfg, args.dataset, args.opts, eval_only=eval_only):
        logger.info(note)
    order = _trained_classes(cfg, getattr(args, "resume", False)) if eval_only else None
    count = bool(args.dataset) and "MODEL.DETR.NUM_CLASSES" not in args.opts[::2]
    names = check_datasets(cfg, eval_only=eval_only, order=order, count=count)
    cfg.DATASETS.CLASS_NAMES = names or []
    if not (eval_only or cfg.DATASETS.TRAIN):
        raise InputError("DATASETS.TRAIN is empty; name at least one registered data set")
    cfg.freeze()
    check_contents(cfg, eval_only=eval_only)
    return cfg


def _trained_classes(cfg: CfgNode, resume: bool) -> list[str] | None:
    """The names in the checkpoint to evaluate; None if it has none, or is not on this machine."""
    path = (resume and last_checkpoint(cfg.OUTPUT_DIR)) or cfg.MODEL.WEIGHTS
    return read_class_names(path) if os.path.isfile(path) else None


def _dry_run(cfg: CfgNode) -> None:
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory(prefix="ddetr_dry_run_") as cfg.OUTPUT_DIR:
        warn_of_slow_precision(cfg)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        logger.info(dry_run(trainer))


def main(
    args: argparse.Namespace,
    more_hooks: Sequence[HookBase] = (),
    after_evaluation: Sequence[Callable[[Trainer], None]] = (),
) -> dict | None:
    """
    Train or evaluate as `args` say.

    Args:
        more_hooks: of a training, called after those of the trainer.
        after_evaluation: called with the trainer after each evaluation, on the main process.

    Returns:
        The results of the last evaluation on the main process.
    """
    if args.dry_run and (args.eval_only or args.resume):
        raise InputError("--dry-run measures a training that begins: leave the other option out")
    cfg = setup(args)
    if args.dry_run:
        _dry_run(cfg)
        return None
    if not args.eval_only:
        with contextlib.ExitStack() as stack:
            if comm.is_main_process():
                # Before anything is written there: another training may have begun since setup.
                stack.enter_context(locked(cfg.OUTPUT_DIR))
                check_run_folder(cfg.OUTPUT_DIR, args.resume)
            # What a training that is refused would have done is no part of the folder of a run.
            with kept_unless_done(os.path.join(cfg.OUTPUT_DIR, "config.yaml")):
                default_setup(cfg, args)
                warn_of_slow_precision(cfg)
                trainer = Trainer(cfg)
                trainer.register_hooks(list(more_hooks))
                trainer.after_evaluation.extend(after_evaluation)
                trainer.resume_or_load(resume=args.resume)
            return trainer.train()
    default_setup(cfg, args)
    if args.resume and cfg.MODEL.WEIGHTS and "MODEL.WEIGHTS" in args.opts[::2]:
        raise InputError(
            "MODEL.WEIGHTS and --resume, which means the last checkpoint of OUTPUT_DIR, cannot "
            "both be evaluated: leave one out"
        )
    results = Trainer.test(cfg, load_trained_model(cfg, resume=args.resume).model)
    if comm.is_main_process():
        for line in summary_lines(finite_results(results), cfg.DATASETS.TEST):
            logger.info(line)
        verify_results(cfg, results)
    return results
