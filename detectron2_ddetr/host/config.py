"""The configuration: detectron2's default keys for a ResNet box detector; yaml loads safely."""

import functools
import inspect
from typing import Any, Callable

from fvcore.common.config import CfgNode

# fmt: off
_DEFAULTS = {
    "MODEL": {
        "MASK_ON": False, "KEYPOINT_ON": False, "LOAD_PROPOSALS": False, "DEVICE": "cuda",
        "META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "",
        "PIXEL_MEAN": [103.530, 116.280, 123.675], "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50, "OUT_FEATURES": ["res4"], "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64,
            "NORM": "FrozenBN", "STRIDE_IN_1X1": True, "RES5_DILATION": 1, "RES2_OUT_CHANNELS": 256,
            "STEM_OUT_CHANNELS": 64, "DEFORM_ON_PER_STAGE": [False, False, False, False],
            "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1,
        },
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,), "MIN_SIZE_TRAIN_SAMPLING": "choice", "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333, "FORMAT": "BGR", "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
    },
    "DATASETS": {"TRAIN": (), "TEST": ()},
    "DATALOADER": {
        "NUM_WORKERS": 4, "ASPECT_RATIO_GROUPING": True, "FILTER_EMPTY_ANNOTATIONS": True,
        "SAMPLER_TRAIN": "TrainingSampler",
    },
    "SOLVER": {
        "IMS_PER_BATCH": 16, "MAX_ITER": 40000, "CHECKPOINT_PERIOD": 5000, "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "GAMMA": 0.1, "STEPS": (30000,),
        "WARMUP_FACTOR": 1.0 / 1000, "WARMUP_ITERS": 1000, "WARMUP_METHOD": "linear",
        "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None,
        "BIAS_LR_FACTOR": 1.0, "REFERENCE_WORLD_SIZE": 0, "AMP": {"ENABLED": False},
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0,
                           "NORM_TYPE": 2.0},
    },
    "TEST": {
        "EXPECTED_RESULTS": [], "EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100,
        "AUG": {"ENABLED": False, "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
                "MAX_SIZE": 4000, "FLIP": True},
        "PRECISE_BN": {"ENABLED": False},
    },
    "OUTPUT_DIR": "./output", "SEED": -1, "VIS_PERIOD": 0, "VERSION": 2,
}
# fmt: on
# What detectron2 can do with another value of these, it must do itself.
_DEFAULT_ONLY = (
    "VERSION MODEL.MASK_ON MODEL.KEYPOINT_ON MODEL.LOAD_PROPOSALS "
    "SOLVER.WARMUP_METHOD SOLVER.REFERENCE_WORLD_SIZE TEST.PRECISE_BN.ENABLED"
)


def get_cfg() -> CfgNode:
    """Return a fresh copy of the default config."""
    return CfgNode(_DEFAULTS).clone()


def check_supported(cfg: CfgNode) -> None:
    """Refuse what is out of scope here."""
    for key in _DEFAULT_ONLY.split():
        value, default = (functools.reduce(getattr, key.split("."), c) for c in (cfg, get_cfg()))
        if value != default:
            raise NotImplementedError(f"{key} {value} needs detectron2; the host has {default}")


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
