"""The one way to a trained model: what the folder of a run means, and the model that it makes."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.files import last_checkpoint
from ..errors import InputError, MissingFileError
from ..toolbox import CfgNode
from .device import check_device, warn_of_slow_precision
from .kept_checkpoints import BEST
from .trainer import Trainer

#: What stands, where weights are asked for, for those of the best evaluation of a run.
BEST_WEIGHTS = "best"


class TrainedModel(NamedTuple):
    """A model in evaluation mode, and what its classes are."""

    model: nn.Module
    #: By class number; None if neither the checkpoint nor the config has names.
    class_names: list[str] | None
    #: Of these classes in the data that it was trained on; None if the checkpoint does not tell.
    category_ids: list[int | str] | None


def files_of_run(folder: str, weights: str | None = None) -> tuple[str, str]:
    """
    The config and the weights of a run.

    Args:
        folder: what OUTPUT_DIR was in training.
        weights: a checkpoint, :data:`BEST_WEIGHTS`, or None for the last one, with which a
            training ends.

    Raises:
        MissingFileError: if it is no such folder, or there was no best evaluation.
    """
    if not os.path.isdir(folder):
        what = f"there is no folder {folder}" if folder else "nothing is given"
        raise MissingFileError(f"{what}: name the folder of a run first, or give --config-file")
    for name in ("config.yaml", "last_checkpoint"):
        if not os.path.isfile(os.path.join(folder, name)):
            raise MissingFileError(
                f"{folder} has no {name}, so it is not the folder of a run; that is what "
                "OUTPUT_DIR was in training"
            )
    if weights is None:
        weights = last_checkpoint(folder)
    elif weights == BEST_WEIGHTS:
        weights = os.path.join(folder, f"{BEST}.pth")
        if not os.path.isfile(weights):
            raise MissingFileError(
                f"{folder} has no {BEST}.pth, which a training keeps that evaluates "
                "(TEST.EVAL_PERIOD): leave the weights out to take its last checkpoint"
            )
    return os.path.join(folder, "config.yaml"), weights


def with_weights(opts: Sequence[Any], weights: str | None) -> list[Any]:
    """
    KEY VALUE pairs with MODEL.WEIGHTS, unless `weights` is None.

    Raises:
        InputError: if they have one already.
    """
    if weights is None:
        return list(opts)
    if "MODEL.WEIGHTS" in opts[::2]:
        raise InputError("--weights and MODEL.WEIGHTS say what to load: give one of them")
    return [*opts, "MODEL.WEIGHTS", weights]


def require_weights(cfg: CfgNode) -> None:
    """
    Raises:
        InputError: if MODEL.WEIGHTS is empty.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError(
            "MODEL.WEIGHTS is empty, and a model without weights predicts nothing: name the folder "
            "of a run, or add MODEL.WEIGHTS with a checkpoint of one"
        )


def load_trained_model(cfg: CfgNode, *, resume: bool = False) -> TrainedModel:
    """
    The model of a config with its weights, on MODEL.DEVICE.

    Args:
        cfg: with MODEL.WEIGHTS.
        resume: take the last checkpoint in OUTPUT_DIR instead, if there is one.

    Raises:
        MissingFileError, InputError: if the device is not there, or the weights are not, or do not
            fit.
    """
    check_device(cfg)
    warn_of_slow_precision(cfg)
    model = Trainer.build_model(cfg).eval()
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, needs_head=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    names = checkpointer.found_names or list(cfg.DATASETS.CLASS_NAMES) or None
    if names and len(names) != cfg.MODEL.DETR.NUM_CLASSES:
        source = cfg.MODEL.WEIGHTS if checkpointer.found_names else "DATASETS.CLASS_NAMES"
        raise InputError(
            f"{source} has {len(names)} class names, but the model has "
            f"{cfg.MODEL.DETR.NUM_CLASSES} classes (MODEL.DETR.NUM_CLASSES): correct the names"
        )
    return TrainedModel(model, names, checkpointer.found_ids)
