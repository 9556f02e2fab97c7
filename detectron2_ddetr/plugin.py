"""Registers everything with detectron2 and collects the public names of the package."""

from . import backbone as _backbone  # noqa: F401  registers
from . import datasets as _datasets  # noqa: F401  registers
from .build import (
    DETR_CRITERION_REGISTRY,
    DETR_TRANSFORMER_REGISTRY,
    build_criterion,
    build_transformer,
)
from .checkpoint import Checkpointer
from .coco_json import check_coco_json, check_datasets, register_coco_json
from .config import add_deformable_detr_config, load_config
from .convert import convert_official_state_dict
from .dataset_mapper import DeformableDETRDatasetMapper
from .engine import Trainer
from .meta_arch import DeformableDETR
from .solver import build_optimizer
from .train_loader import build_train_loader

__all__ = [
    "Checkpointer",
    "DETR_CRITERION_REGISTRY",
    "DETR_TRANSFORMER_REGISTRY",
    "DeformableDETR",
    "DeformableDETRDatasetMapper",
    "Trainer",
    "add_deformable_detr_config",
    "build_criterion",
    "build_optimizer",
    "build_train_loader",
    "build_transformer",
    "check_coco_json",
    "check_datasets",
    "convert_official_state_dict",
    "load_config",
    "register_coco_json",
]
