"""The configuration: detectron2's default keys for a plain ResNet box detector."""

import functools
import inspect
import os
from typing import Any, Callable

from fvcore.common.config import CfgNode as _CfgNode

from .file_io import PathManager

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
            "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1,
        },
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,), "MIN_SIZE_TRAIN_SAMPLING": "choice", "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333, "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
        "FORMAT": "BGR", "MASK_FORMAT": "polygon",
    },
    "DATASETS": {
        "TRAIN": (), "PROPOSAL_FILES_TRAIN": (), "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
        "TEST": (), "PROPOSAL_FILES_TEST": (), "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4, "ASPECT_RATIO_GROUPING": True, "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0, "REPEAT_SQRT": True, "FILTER_EMPTY_ANNOTATIONS": True,
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "MAX_ITER": 40000,
        "BASE_LR": 0.001, "BASE_LR_END": 0.0, "MOMENTUM": 0.9, "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_NORM": 0.0,
        "GAMMA": 0.1, "STEPS": (30000,), "NUM_DECAYS": 3,
        "WARMUP_FACTOR": 1.0 / 1000, "WARMUP_ITERS": 1000, "WARMUP_METHOD": "linear",
        "RESCALE_INTERVAL": False, "CHECKPOINT_PERIOD": 5000, "IMS_PER_BATCH": 16,
        "REFERENCE_WORLD_SIZE": 0, "BIAS_LR_FACTOR": 1.0, "WEIGHT_DECAY_BIAS": None,
        "CLIP_GRADIENTS": {
            "ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0,
        },
        "AMP": {"ENABLED": False},
    },
    "TEST": {
        "EXPECTED_RESULTS": [], "EVAL_PERIOD": 0, "KEYPOINT_OKS_SIGMAS": [],
        "DETECTIONS_PER_IMAGE": 100,
        "AUG": {
            "ENABLED": False, "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
            "MAX_SIZE": 4000, "FLIP": True,
        },
        "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
    },
    "OUTPUT_DIR": "./output", "SEED": -1, "CUDNN_BENCHMARK": False, "FLOAT32_PRECISION": "",
    "VIS_PERIOD": 0, "GLOBAL": {"HACK": 1.0},
}
# fmt: on


class CfgNode(_CfgNode):
    """A strict, freezable tree of options. Yaml files are always loaded safely."""

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a yaml file, after the files named by its ``_BASE_`` key."""
        assert PathManager.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist!"
        if allow_unsafe:
            raise NotImplementedError("unsafe yaml needs detectron2; the embedded host refuses it")
        loaded = type(self)(self.load_yaml_with_base(os.fspath(cfg_filename)))
        if loaded.get("VERSION", self.VERSION) != self.VERSION:
            raise NotImplementedError(
                f"{cfg_filename} has VERSION {loaded.VERSION}; upgrading it needs detectron2"
            )
        self.merge_from_other_cfg(loaded)


def get_cfg() -> CfgNode:
    """Return a fresh copy of the default config."""
    return CfgNode(_DEFAULTS).clone()


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None):
    """
    Let ``__init__``, or a function, be called with a config as well as with explicit arguments.

    A class supplies the classmethod ``from_config(cls, cfg, ...)``, a function passes
    ``from_config=``. It returns the arguments as a dict; extra keyword arguments win over it.
    """
    if init_func is not None:
        assert inspect.isfunction(init_func) and init_func.__name__ == "__init__", init_func

        @functools.wraps(init_func)
        def wrapped_init(self, *args, **kwargs):
            if not hasattr(type(self), "from_config"):
                raise AttributeError(f"{type(self)} needs a 'from_config' classmethod")
            if not inspect.ismethod(type(self).from_config):
                raise TypeError(f"{type(self)}.from_config must be a classmethod")
            if _has_cfg(args, kwargs):
                args, kwargs = (), _explicit_args(type(self).from_config, args, kwargs)
            init_func(self, *args, **kwargs)

        return wrapped_init
    if from_config is None:
        return configurable

    def decorate(func):
        @functools.wraps(func)
        def wrapped(*args, **kwargs):
            if _has_cfg(args, kwargs):
                args, kwargs = (), _explicit_args(from_config, args, kwargs)
            return func(*args, **kwargs)

        wrapped.from_config = from_config
        return wrapped

    return decorate


def _has_cfg(args: tuple, kwargs: dict[str, Any]) -> bool:
    return isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode)


def _explicit_args(from_config: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    params = inspect.signature(from_config).parameters
    if next(iter(params)) != "cfg":
        raise TypeError(f"{from_config} must take 'cfg' as its first argument")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in params.values()):
        return from_config(*args, **kwargs)
    result = from_config(*args, **{k: v for k, v in kwargs.items() if k in params})
    result.update({k: v for k, v in kwargs.items() if k not in params})
    return result
