"""The configuration: detectron2's default keys for a ResNet box detector; yaml loads safely."""

import functools
import inspect
from typing import Any, Callable

from fvcore.common.config import CfgNode

# fmt: off
_DEFAULTS = {
    "VERSION": 2,
    "MODEL": {
        "LOAD_PROPOSALS": False, "MASK_ON": False, "KEYPOINT_ON": False, "DEVICE": "cuda",
        "META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "",
        "PIXEL_MEAN": [103.530, 116.280, 123.675], "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50, "OUT_FEATURES": ["res4"], "NUM_GROUPS": 1, "NORM": "FrozenBN",
            "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": True, "RES5_DILATION": 1,
            "RES2_OUT_CHANNELS": 256, "STEM_OUT_CHANNELS": 64,
            "DEFORM_ON_PER_STAGE": [False, False, False, False],
        },
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,), "MIN_SIZE_TRAIN_SAMPLING": "choice", "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333, "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
        "FORMAT": "BGR",
    },
    "DATASETS": {"TRAIN": (), "TEST": ()},
    "DATALOADER": {
        "NUM_WORKERS": 4, "ASPECT_RATIO_GROUPING": True, "SAMPLER_TRAIN": "TrainingSampler",
        "FILTER_EMPTY_ANNOTATIONS": True,
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "MAX_ITER": 40000,
        "BASE_LR": 0.001, "BASE_LR_END": 0.0, "MOMENTUM": 0.9, "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_NORM": 0.0,
        "BIAS_LR_FACTOR": 1.0, "WEIGHT_DECAY_BIAS": None, "GAMMA": 0.1, "STEPS": (30000,),
        "WARMUP_FACTOR": 1.0 / 1000, "WARMUP_ITERS": 1000, "WARMUP_METHOD": "linear",
        "RESCALE_INTERVAL": False, "CHECKPOINT_PERIOD": 5000, "IMS_PER_BATCH": 16,
        "REFERENCE_WORLD_SIZE": 0, "AMP": {"ENABLED": False},
        "CLIP_GRADIENTS": {
            "ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0,
        },
    },
    "TEST": {
        "EXPECTED_RESULTS": [], "EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100,
        "AUG": {"ENABLED": False}, "PRECISE_BN": {"ENABLED": False},
    },
    "OUTPUT_DIR": "./output", "SEED": -1, "CUDNN_BENCHMARK": False, "VIS_PERIOD": 0,
}
# What else detectron2 can do, it must do itself.
_SUPPORTED = {
    "MODEL.LOAD_PROPOSALS": [False], "MODEL.MASK_ON": [False], "MODEL.KEYPOINT_ON": [False],
    "MODEL.RESNETS.RES5_DILATION": [1, 2],
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [[False, False, False, False]],
    "SOLVER.LR_SCHEDULER_NAME": ["WarmupMultiStepLR", "WarmupCosineLR"],
    "SOLVER.WARMUP_METHOD": ["linear", "constant"], "SOLVER.REFERENCE_WORLD_SIZE": [0],
    "TEST.AUG.ENABLED": [False], "TEST.PRECISE_BN.ENABLED": [False],
}
# fmt: on


def get_cfg() -> CfgNode:
    """Return a fresh copy of the default config."""
    return CfgNode(_DEFAULTS).clone()


def check_supported(cfg: CfgNode) -> None:
    """Refuse what is out of scope here."""
    for key, values in _SUPPORTED.items():
        value = functools.reduce(getattr, key.split("."), cfg)
        if value not in values:
            raise NotImplementedError(f"{key} {value!r} needs detectron2; the host has {values}")


def configurable(init_func: Callable[..., None]) -> Callable[..., None]:
    """Let ``__init__`` take a config, which ``from_config(cls, cfg, ...)`` turns into arguments."""

    @functools.wraps(init_func)
    def wrapped(self, *args: Any, **kwargs: Any) -> None:
        if isinstance(args[0] if args else kwargs.get("cfg"), CfgNode):
            from_config = type(self).from_config
            taken = inspect.signature(from_config).parameters
            explicit = from_config(*args, **{k: v for k, v in kwargs.items() if k in taken})
            args, kwargs = (), explicit | {k: v for k, v in kwargs.items() if k not in taken}
        init_func(self, *args, **kwargs)

    return wrapped
