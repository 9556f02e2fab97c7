"""
Everything this package uses from detectron2, in one place.

With detectron2 installed these are its own objects. Without it, :mod:`.host` supplies stand-ins
with the same names, signatures and parameter names. No other module imports either of them, so
this page is the whole dependency. :mod:`.collect_env` prints which is in use.
"""

import importlib.util
import os


def _installed(name: str) -> bool:
    """True for a real package; a mere folder of that name does not count."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


# Chosen by presence, never by failure: an installed but broken detectron2 raises.
# The variable exists so that tests can compare the two.
TOOLBOX = os.environ.get("DDETR_TOOLBOX") or ("detectron2" if _installed("detectron2") else "host")
if TOOLBOX not in ("detectron2", "host"):
    raise ValueError(f"DDETR_TOOLBOX must be 'detectron2' or 'host', got {TOOLBOX!r}")

if TOOLBOX == "detectron2":
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, configurable, get_cfg
    from detectron2.data import (
        DatasetCatalog,
        DatasetFromList,
        MetadataCatalog,
        build_detection_test_loader,
        get_detection_dataset_dicts,
    )
    from detectron2.data import transforms as T
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import (
        DefaultTrainer,
        HookBase,
        SimpleTrainer,
        TrainerBase,
        default_argument_parser,
        default_setup,
        hooks,
        launch,
    )
    from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, verify_results
    from detectron2.layers import Conv2d, ShapeSpec
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        Backbone,
        build_backbone,
        build_model,
        detector_postprocess,
    )
    from detectron2.modeling.backbone import build_resnet_backbone
    from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
    from detectron2.solver import build_lr_scheduler, get_default_optimizer_params
    from detectron2.structures import Boxes, BoxMode, ImageList, Instances
    from detectron2.utils import comm
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.logger import setup_logger
else:
    from .host import comm, hooks
    from .host import transforms as T
    from .host.checkpoint import DetectionCheckpointer, PathManager
    from .host.config import CfgNode, configurable, get_cfg
    from .host.data import (
        DatasetCatalog,
        DatasetFromList,
        MetadataCatalog,
        build_detection_test_loader,
        get_detection_dataset_dicts,
        register_coco_instances,
    )
    from .host.engine import (
        DefaultTrainer,
        HookBase,
        SimpleTrainer,
        TrainerBase,
        default_argument_parser,
        default_setup,
        launch,
    )
    from .host.evaluation import DatasetEvaluator, inference_on_dataset, verify_results
    from .host.layers import ShapeSpec
    from .host.logger import setup_logger
    from .host.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        Backbone,
        BasicBlock,
        BottleneckBlock,
        Conv2d,
        build_backbone,
        build_model,
        build_resnet_backbone,
        detector_postprocess,
    )
    from .host.solver import build_lr_scheduler, get_default_optimizer_params
    from .host.structures import Boxes, BoxMode, ImageList, Instances


def has_compiled_layers() -> bool:
    """Whether detectron2 is in use, and its extension is there."""
    return TOOLBOX == "detectron2" and importlib.util.find_spec("detectron2._C") is not None


def describe_toolbox() -> str:
    """One line: which toolbox is in use, and where it is."""
    if TOOLBOX == "host":
        why = "detectron2 is not installed"
        if "DDETR_TOOLBOX" in os.environ:
            why = "the environment variable DDETR_TOOLBOX says so"
        return f"embedded host, because {why}"
    module = importlib.import_module("detectron2")
    return f"detectron2 {module.__version__} ({os.path.dirname(module.__file__)})"
