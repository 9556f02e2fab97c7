"""Registries of transformers and criteria, and their builders from a config."""

from collections.abc import Callable, Sequence

from fvcore.common.registry import Registry

from .errors import UnknownKeyError
from .modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    FeatureProjector,
    HungarianMatcher,
    SetCriterion,
    TwoStageDeformableTransformer,
)
from .toolbox import CfgNode

DETR_TRANSFORMER_REGISTRY = Registry("DETR_TRANSFORMER")
DETR_TRANSFORMER_REGISTRY.__doc__ = """
Functions `(cfg) -> DeformableTransformer`; MODEL.DETR.TRANSFORMER names one.
"""

DETR_CRITERION_REGISTRY = Registry("DETR_CRITERION")
DETR_CRITERION_REGISTRY.__doc__ = """
Functions `(cfg) -> SetCriterion`; MODEL.DETR.CRITERION names one.
"""


def registered(registry: Registry, key: str, name: str) -> Callable:
    """
    The entry of a registry that a config key names.

    Raises:
        UnknownKeyError: if there is none; lists those that there are.
    """
    if name not in registry:
        known = ", ".join(sorted(entry for entry, _ in registry))
        raise UnknownKeyError(
            f"{key} {name!r} is not registered; there is {known}. Import the module that "
            "registers it, or correct the name"
        )
    return registry.get(name)


def build_transformer(cfg: CfgNode) -> DeformableTransformer:
    """The transformer that MODEL.DETR.TRANSFORMER names."""
    name = cfg.MODEL.DETR.TRANSFORMER
    return registered(DETR_TRANSFORMER_REGISTRY, "MODEL.DETR.TRANSFORMER", name)(cfg)


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """The criterion that MODEL.DETR.CRITERION names."""
    name = cfg.MODEL.DETR.CRITERION
    return registered(DETR_CRITERION_REGISTRY, "MODEL.DETR.CRITERION", name)(cfg)


@DETR_TRANSFORMER_REGISTRY.register()
def build_deformable_transformer(cfg: CfgNode) -> DeformableTransformer:
    """One-stage or two-stage, as MODEL.DETR.TWO_STAGE says."""
    node = cfg.MODEL.DETR
    arguments = {
        "d_model": node.HIDDEN_DIM,
        "n_heads": node.NHEADS,
        "num_encoder_layers": node.ENC_LAYERS,
        "num_decoder_layers": node.DEC_LAYERS,
        "dim_feedforward": node.DIM_FEEDFORWARD,
        "dropout": node.DROPOUT,
        "n_levels": node.NUM_FEATURE_LEVELS,
        "enc_n_points": node.ENC_N_POINTS,
        "dec_n_points": node.DEC_N_POINTS,
    }
    if node.TWO_STAGE:
        return TwoStageDeformableTransformer(num_queries=node.NUM_QUERIES, **arguments)
    return DeformableTransformer(**arguments)


@DETR_CRITERION_REGISTRY.register()
def build_set_criterion(cfg: CfgNode) -> SetCriterion:
    """Focal, L1 and generalised IoU losses with Hungarian matching."""
    node = cfg.MODEL.DETR
    return SetCriterion(
        HungarianMatcher(node.COST_CLASS, node.COST_BBOX, node.COST_GIOU),
        loss_ce_weight=node.LOSS_CE_WEIGHT,
        loss_bbox_weight=node.LOSS_BBOX_WEIGHT,
        loss_giou_weight=node.LOSS_GIOU_WEIGHT,
        focal_alpha=node.FOCAL_ALPHA,
    )


def build_head(cfg: CfgNode, in_channels: Sequence[int]) -> DeformableDETRHead:
    """
    Args:
        in_channels: channels of the backbone maps named by IN_FEATURES.
    """
    node = cfg.MODEL.DETR
    return DeformableDETRHead(
        input_proj=FeatureProjector(list(in_channels), node.HIDDEN_DIM, node.NUM_FEATURE_LEVELS),
        transformer=build_transformer(cfg),
        num_classes=node.NUM_CLASSES,
        num_queries=node.NUM_QUERIES,
        with_box_refine=node.WITH_BOX_REFINE,
    )
