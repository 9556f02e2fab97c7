"""Registers everything with detectron2 and collects the public names of the package."""

from . import counters as _counters  # noqa: F401  registers
from .backbones import dat as _dat  # noqa: F401  registers
from .backbones import efficientnet_lite as _efficientnet_lite  # noqa: F401  registers
from .backbones import resnet as _resnet  # noqa: F401  registers
from .backbones import timm_features as _timm_features  # noqa: F401  registers
from .build import (
    DETR_CRITERION_REGISTRY,
    DETR_TRANSFORMER_REGISTRY,
    build_criterion,
    build_transformer,
)
from .checkpoint.checkpointer import Checkpointer
from .checkpoint.official import convert_official_state_dict
from .config import add_deformable_detr_config, load_config
from .data import builtin as _builtin  # noqa: F401  registers
from .data.class_names import check_datasets
from .data.coco_dataset import register_coco_json
from .data.dataset_contents import check_coco_json
from .data.dataset_mapper import DeformableDETRDatasetMapper
from .data.train_loader import build_train_loader
from .engine.optimizer import build_optimizer
from .engine.test_time_augmentation import DetectorWithTTA
from .engine.trainer import Trainer
from .modeling import capture
from .predictor import Predictor
from .systems import (
    DETR,
    DINO,
    DABDeformableDETR,
    DeformableDETR,
    DetrexDINO,
    DNDeformableDETR,
    HDeformableDETR,
)

__all__ = [
    "Checkpointer",
    "DABDeformableDETR",
    "DETR",
    "DETR_CRITERION_REGISTRY",
    "DETR_TRANSFORMER_REGISTRY",
    "DINO",
    "DNDeformableDETR",
    "DeformableDETR",
    "DeformableDETRDatasetMapper",
    "DetectorWithTTA",
    "DetrexDINO",
    "HDeformableDETR",
    "Predictor",
    "Trainer",
    "add_deformable_detr_config",
    "build_criterion",
    "build_optimizer",
    "build_train_loader",
    "build_transformer",
    "capture",
    "check_coco_json",
    "check_datasets",
    "convert_official_state_dict",
    "load_config",
    "register_coco_json",
]
