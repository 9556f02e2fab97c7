"""Registers everything with detectron2 and collects the public names of the package."""

from . import backbone as _, datasets as _datasets  # noqa: F401  only registration
from .build import (
    DETR_CRITERION_REGISTRY,
    DETR_TRANSFORMER_REGISTRY,
    build_criterion,
    build_transformer,
)
from .checkpoint import Checkpointer
from .coco_json import register_coco_json
from .config import add_deformable_detr_config, load_config
from .convert import convert_official_state_dict
from .dataset_mapper import DeformableDETRDatasetMapper
from .meta_arch import DeformableDETR
from .solver import build_optimizer
from .train_loader import build_train_loader
