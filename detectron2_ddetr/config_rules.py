"""Which values the keys of a config may have, and which may stand together."""

import functools
import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

from .errors import InputError, UnsupportedError
from .query_rules import check_queries
from .toolbox import TOOLBOX, CfgNode, comm, has_compiled_layers

_ABOVE_0 = math.ulp(0.0)
_MOST = sys.float_info.max

#: From where to where the numbers of a key may lie; of a list, each of them.
_RANGES = {
    # fmt: off
    **dict.fromkeys(
        [f"MODEL.DETR.{key}" for key in (
            "NUM_CLASSES", "NUM_QUERIES", "HIDDEN_DIM", "NHEADS", "DIM_FEEDFORWARD", "DEC_LAYERS",
            "ENC_N_POINTS", "DEC_N_POINTS", "SIZE_DIVISIBILITY", "ONE_TO_MANY.REPEATS",
            "DENOISING.NUM_QUERIES")]
        + ["INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER",
           "SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.ACCUMULATION_STEPS",
           "TEST.DETECTIONS_PER_IMAGE", "TEST.AUG.MAX_SIZE"],
        (1, _MOST),
    ),
    **dict.fromkeys(
        [f"MODEL.DETR.{key}" for key in (
            "ENC_LAYERS", "LOSS_CE_WEIGHT", "LOSS_BBOX_WEIGHT", "LOSS_GIOU_WEIGHT", "COST_CLASS",
            "COST_BBOX", "COST_GIOU", "ONE_TO_MANY.NUM_QUERIES", "ONE_TO_MANY.LOSS_WEIGHT",
            "DENOISING.NUM_GROUPS", "DENOISING.BOX_NOISE")]
        + ["INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "INPUT.CROP_RESIZE_SIZES",
           "TEST.AUG.MIN_SIZES",
           "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS",
           "SOLVER.BIAS_LR_FACTOR", "SOLVER.BACKBONE_MULTIPLIER", "SOLVER.LINEAR_PROJ_MULTIPLIER",
           "SOLVER.CHECKPOINTS_TO_KEEP", "SOLVER.EARLY_STOP_PATIENCE",
           "SOLVER.REFERENCE_BATCH", "SOLVER.BASE_LR_END", "SOLVER.GAMMA",
           "SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_ITERS",
           "MODEL.BACKBONE.FREEZE_AT", "DATALOADER.NUM_WORKERS"],
        (0, _MOST),
    ),
    "MODEL.DETR.DROPOUT": (0, 1),
    "MODEL.DETR.NO_OBJECT_WEIGHT": (_ABOVE_0, 1),
    "MODEL.DETR.DENOISING.LABEL_NOISE": (0, 1),
    "MODEL.DAT.DROP_PATH_RATE": (0, 1),
    "SOLVER.EMA_DECAY": (0, math.nextafter(1, 0)),
    "MODEL.PIXEL_STD": (_ABOVE_0, _MOST),
    "SOLVER.BASE_LR": (_ABOVE_0, _MOST),
    "SEED": (-_MOST, 2**32 - 1),
    # fmt: on
}

#: The values that a key may have.
_CHOICES = {
    "INPUT.RESIZE_RULE": ("truncate", "round"),
    "SOLVER.AMP.PRECISION": ("bfloat16", "float16"),
    "SOLVER.BATCH_RULE": ("keep", "scale", "accumulate"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}

#: What the embedded host has of a key of which detectron2 has more.
_HOST_CHOICES = {
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", ""),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear",),
}

#: Keys of detectron2 that change nothing here: their only value, and what to do instead.
_NOT_FOLLOWED = {
    "MODEL.MASK_ON": (False, "this family detects boxes"),
    "MODEL.KEYPOINT_ON": (False, "this family detects boxes"),
    "MODEL.LOAD_PROPOSALS": (False, "this family makes its own"),
    "SOLVER.REFERENCE_WORLD_SIZE": (
        0,
        "SOLVER.REFERENCE_BATCH and SOLVER.BATCH_RULE fit a recipe to another batch",
    ),
    "TEST.PRECISE_BN.ENABLED": (False, "statistics of BatchNorm are those of training"),
    "VIS_PERIOD": (0, "`ddetr visualize` draws"),
}


def check_config(cfg: CfgNode) -> None:
    """
    Reject values that cannot be, and keys that contradict each other, before anything is built.

    Raises:
        InputError: naming the keys, their values and the remedy.
        UnsupportedError: for what needs detectron2, where that is not installed.
    """
    if "DETR" not in cfg.MODEL:
        raise InputError("the config has no MODEL.DETR: call add_deformable_detr_config(cfg) first")
    for key, (lowest, highest) in _RANGES.items():
        _check_range(key, _value(cfg, key), lowest, highest)
    for key, choices in _CHOICES.items():
        if (value := _value(cfg, key)) not in choices:
            raise InputError(f"{key} must be {_either(choices)}, got {value!r}")
    for key, choices in _HOST_CHOICES.items():
        if TOOLBOX == "host" and (value := _value(cfg, key)) not in choices:
            raise UnsupportedError(
                f"{key} {value!r} needs detectron2; without it there is {_either(choices)}"
            )
    _check_deformable_convolutions(cfg)
    _check_detr(cfg)
    check_queries(cfg)
    _check_schedule(cfg)
    if cfg.TEST.AUG.ENABLED and not cfg.TEST.AUG.MIN_SIZES:
        raise InputError("TEST.AUG.ENABLED needs a size in TEST.AUG.MIN_SIZES, which is empty")


def check_trainer_config(cfg: CfgNode) -> None:
    """
    Reject what detectron2 knows and this package's trainer would not do.

    Raises:
        InputError: naming the key and what to do instead.
    """
    for key, (only, instead) in _NOT_FOLLOWED.items():
        if _value(cfg, key) != only:
            raise InputError(f"{key} must be {only}, got {_value(cfg, key)!r}: {instead}")
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise InputError(
            f"SOLVER.AMP.PRECISION is 'float16', but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: it is "
            "for GPUs; set SOLVER.AMP.PRECISION bfloat16"
        )
    if cfg.TEST.INT8 and cfg.MODEL.DEVICE != "cpu":
        # The evaluation would say so, after the first part of a training.
        raise InputError(
            f"TEST.INT8 is True, but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: linear layers of 8 bits "
            "are for CPUs; set TEST.INT8 False"
        )
    solver = cfg.SOLVER
    images = solver.IMS_PER_BATCH // comm.get_world_size()
    if solver.ACCUMULATION_STEPS > images:
        raise InputError(
            f"SOLVER.ACCUMULATION_STEPS is {solver.ACCUMULATION_STEPS}, but a process has only "
            f"{images} images of SOLVER.IMS_PER_BATCH ({solver.IMS_PER_BATCH}): it divides these, "
            "so set it to no more"
        )
    if solver.EARLY_STOP_PATIENCE and not (cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TEST):
        raise InputError(
            f"SOLVER.EARLY_STOP_PATIENCE is {solver.EARLY_STOP_PATIENCE}, but nothing is evaluated "
            "during training: set TEST.EVAL_PERIOD, and DATASETS.TEST or --val"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.MAX_ITER in solver.STEPS:
        raise InputError(
            f"SOLVER.STEPS has SOLVER.MAX_ITER ({solver.MAX_ITER}), where training ends: leave "
            "that one out"
        )
    for expected in cfg.TEST.EXPECTED_RESULTS:
        if not _is_expected_result(expected):
            raise InputError(
                "TEST.EXPECTED_RESULTS must be a list of [task, metric, value, tolerance], such as "
                f"[['bbox', 'AP', 38.5, 0.2]], got {expected!r}"
            )


def schedule_note(cfg: CfgNode) -> str | None:
    """
    What is odd about a schedule that can be: a training of so few iterations may be a trial.

    Detectron2's warm-up ends where the schedule is then, which of a cosine is its end.
    """
    solver = cfg.SOLVER
    if solver.MAX_ITER > solver.WARMUP_ITERS:
        return None
    cosine = solver.LR_SCHEDULER_NAME == "WarmupCosineLR"
    return (
        f"SOLVER.MAX_ITER ({solver.MAX_ITER}) is not above SOLVER.WARMUP_ITERS "
        f"({solver.WARMUP_ITERS}): the training ends in its warm-up, and the learning rate "
        f"{'stays near 0' if cosine else 'does not stay at SOLVER.BASE_LR'}; lower "
        "SOLVER.WARMUP_ITERS, or train longer"
    )


def _check_deformable_convolutions(cfg: CfgNode) -> None:
    name, stages = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE
    if not any(stages) or not name.startswith(("build_resnet_", "build_retinanet_resnet_")):
        return
    if not has_compiled_layers():
        raise UnsupportedError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {stages}: for that, MODEL.BACKBONE.NAME {name} "
            "needs detectron2 with its compiled extension; build_detr_resnet_backbone does not"
        )


def _check_detr(cfg: CfgNode) -> None:
    node = cfg.MODEL.DETR
    prefix = "MODEL.DETR"
    if node.HIDDEN_DIM % node.NHEADS or node.HIDDEN_DIM % 32:
        raise InputError(
            f"{prefix}.HIDDEN_DIM ({node.HIDDEN_DIM}) must be divisible by NHEADS "
            f"({node.NHEADS}) and by 32 (groups of the GroupNorm)"
        )
    if node.NUM_FEATURE_LEVELS < len(node.IN_FEATURES):
        raise InputError(
            f"{prefix}.NUM_FEATURE_LEVELS ({node.NUM_FEATURE_LEVELS}) is less than the number of "
            f"IN_FEATURES {list(node.IN_FEATURES)}: drop features or add levels"
        )
    if node.FOCAL_ALPHA != -1:  # which is no weighting
        _check_range(f"{prefix}.FOCAL_ALPHA", node.FOCAL_ALPHA, 0, 1)
    if not node.COST_CLASS + node.COST_BBOX + node.COST_GIOU:
        raise InputError(f"{prefix}.COST_CLASS, COST_BBOX and COST_GIOU are all 0: set one higher")


def _is_expected_result(row: Any) -> bool:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        return False
    return row[0] == "bbox" and all(isinstance(number, Real) for number in row[2:])


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if any(a >= b for a, b in zip(solver.STEPS, solver.STEPS[1:])):
        raise InputError(f"SOLVER.STEPS must rise, got {solver.STEPS}")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        raise InputError(
            f"SOLVER.BASE_LR_END ({solver.BASE_LR_END}) is above SOLVER.BASE_LR "
            f"({solver.BASE_LR}): it is where the cosine ends"
        )


def _either(choices: Sequence[Any]) -> str:
    return " or ".join(map(repr, choices))


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def _check_range(key: str, value: Any, lowest: float, highest: float) -> None:
    """Raises InputError for numbers beyond, and for what is no number; None means another key."""
    if value is None:
        return
    values = value if isinstance(value, (list, tuple)) else [value]
    if all(isinstance(x, Real) and lowest <= x <= highest for x in values):
        return
    if lowest == -_MOST:
        rule = f"at most {highest}"
    else:
        rule = "above 0" if lowest == _ABOVE_0 else f"at least {lowest}"
        if highest != _MOST:
            between = f"from {lowest} to {highest}"
            rule = f"{rule} and at most {highest}" if lowest == _ABOVE_0 else between
    raise InputError(f"{key} must be {rule}, got {value!r}")
