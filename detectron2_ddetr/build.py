"""Registries of transformers and criteria, and their builders from a config."""

from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.registry import Registry

from .errors import UnknownKeyError
from .modeling import (
    AnchorTransformer,
    DeformableDETRHead,
    DeformableTransformer,
    Denoising,
    DenseTransformer,
    DETRHead,
    DINOTransformer,
    FeatureProjector,
    HungarianMatcher,
    OneToMany,
    PlainProjector,
    PositionEmbeddingSine,
    SetCriterion,
    SoftmaxCriterion,
    SoftmaxMatcher,
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
    node, arguments = cfg.MODEL.DETR, _transformer_arguments(cfg)
    if node.TWO_STAGE:
        return TwoStageDeformableTransformer(node.NUM_QUERIES, node.MIXED_SELECTION, **arguments)
    return DeformableTransformer(**arguments)


@DETR_TRANSFORMER_REGISTRY.register()
def build_anchor_transformer(cfg: CfgNode) -> AnchorTransformer:
    """Of DAB- and DN-Deformable-DETR; an anchor for each query, those that only train included."""
    node = cfg.MODEL.DETR
    num_anchors = node.NUM_QUERIES + node.ONE_TO_MANY.NUM_QUERIES
    return AnchorTransformer(num_anchors, **_transformer_arguments(cfg))


@DETR_TRANSFORMER_REGISTRY.register()
def build_dino_transformer(cfg: CfgNode) -> DINOTransformer:
    """Of DINO."""
    return DINOTransformer(cfg.MODEL.DETR.NUM_QUERIES, **_transformer_arguments(cfg))


@DETR_TRANSFORMER_REGISTRY.register()
def build_dense_transformer(cfg: CfgNode) -> DenseTransformer:
    """Of DETR."""
    return DenseTransformer(**_sizes(cfg))


def _sizes(cfg: CfgNode) -> dict[str, Any]:
    """The arguments that all transformers have."""
    node = cfg.MODEL.DETR
    return {
        "d_model": node.HIDDEN_DIM,
        "n_heads": node.NHEADS,
        "num_encoder_layers": node.ENC_LAYERS,
        "num_decoder_layers": node.DEC_LAYERS,
        "dim_feedforward": node.DIM_FEEDFORWARD,
        "dropout": node.DROPOUT,
    }


def _transformer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Those of :class:`DeformableTransformer`."""
    node = cfg.MODEL.DETR
    return {
        **_sizes(cfg),
        "n_levels": node.NUM_FEATURE_LEVELS,
        "enc_n_points": node.ENC_N_POINTS,
        "dec_n_points": node.DEC_N_POINTS,
    }


@DETR_CRITERION_REGISTRY.register()
def build_set_criterion(cfg: CfgNode, giou_eps: float = 0.0) -> SetCriterion:
    """Focal, L1 and generalised IoU losses with Hungarian matching."""
    node = cfg.MODEL.DETR
    costs = node.COST_CLASS, node.COST_BBOX, node.COST_GIOU
    return SetCriterion(
        HungarianMatcher(*costs, giou_eps=giou_eps),
        loss_ce_weight=node.LOSS_CE_WEIGHT,
        loss_bbox_weight=node.LOSS_BBOX_WEIGHT,
        loss_giou_weight=node.LOSS_GIOU_WEIGHT,
        focal_alpha=node.FOCAL_ALPHA,
        giou_eps=giou_eps,
    )


@DETR_CRITERION_REGISTRY.register()
def build_anchor_criterion(cfg: CfgNode) -> SetCriterion:
    """The same with the generalised IoU of DAB-, DN-Deformable-DETR and DINO."""
    return build_set_criterion(cfg, giou_eps=1e-6)


@DETR_CRITERION_REGISTRY.register()
def build_softmax_criterion(cfg: CfgNode) -> SoftmaxCriterion:
    """Cross-entropy with a class of no object, L1 and generalised IoU losses, as in DETR."""
    node = cfg.MODEL.DETR
    return SoftmaxCriterion(
        SoftmaxMatcher(node.COST_CLASS, node.COST_BBOX, node.COST_GIOU),
        loss_ce_weight=node.LOSS_CE_WEIGHT,
        loss_bbox_weight=node.LOSS_BBOX_WEIGHT,
        loss_giou_weight=node.LOSS_GIOU_WEIGHT,
        no_object_weight=node.NO_OBJECT_WEIGHT,
    )


def build_one_to_many(cfg: CfgNode) -> OneToMany | None:
    """The queries of MODEL.DETR.ONE_TO_MANY; None without any."""
    node = cfg.MODEL.DETR.ONE_TO_MANY
    if not node.NUM_QUERIES:
        return None
    return OneToMany(node.NUM_QUERIES, node.REPEATS, node.LOSS_WEIGHT)


def build_denoising(cfg: CfgNode, inverse_sigmoid_eps: float) -> Denoising | None:
    """What MODEL.DETR.DENOISING says; None where it is not enabled."""
    node = cfg.MODEL.DETR.DENOISING
    if not node.ENABLED:
        return None
    return Denoising(
        cfg.MODEL.DETR.NUM_CLASSES,
        cfg.MODEL.DETR.HIDDEN_DIM,
        num_queries=node.NUM_QUERIES,
        num_groups=node.NUM_GROUPS or None,
        label_noise=node.LABEL_NOISE,
        box_noise=node.BOX_NOISE,
        negatives=node.NEGATIVES,
        corner_noise=node.CORNER_NOISE,
        indicator=node.INDICATOR,
        inverse_sigmoid_eps=inverse_sigmoid_eps,
    )


def build_head(
    cfg: CfgNode,
    in_channels: Sequence[int],
    *,
    inverse_sigmoid_eps: float = 1e-5,
    **parts: Any,
) -> DeformableDETRHead:
    """
    Args:
        in_channels: channels of the backbone maps named by IN_FEATURES.
        inverse_sigmoid_eps, parts: of :class:`DeformableDETRHead`, where a system has its own.
    """
    node = cfg.MODEL.DETR
    return DeformableDETRHead(
        input_proj=FeatureProjector(list(in_channels), node.HIDDEN_DIM, node.NUM_FEATURE_LEVELS),
        transformer=build_transformer(cfg),
        num_classes=node.NUM_CLASSES,
        num_queries=node.NUM_QUERIES,
        with_box_refine=node.WITH_BOX_REFINE,
        look_forward_twice=node.LOOK_FORWARD_TWICE,
        one_to_many=build_one_to_many(cfg),
        denoising=build_denoising(cfg, inverse_sigmoid_eps),
        inverse_sigmoid_eps=inverse_sigmoid_eps,
        **parts,
    )


def build_anchor_head(cfg: CfgNode, in_channels: Sequence[int]) -> DeformableDETRHead:
    """The head of DAB- and DN-Deformable-DETR."""
    return build_head(cfg, in_channels, inverse_sigmoid_eps=1e-3)


def build_dino_head(cfg: CfgNode, in_channels: Sequence[int]) -> DeformableDETRHead:
    """The head of DINO."""
    half = cfg.MODEL.DETR.HIDDEN_DIM // 2
    return build_head(
        cfg,
        in_channels,
        inverse_sigmoid_eps=1e-3,
        shared_heads=True,
        position_embedding=PositionEmbeddingSine(half, temperature=20.0, offset=0.0),
    )


def build_detr_head(cfg: CfgNode, in_channels: Sequence[int]) -> DETRHead:
    """The head of DETR, which reads one map."""
    node = cfg.MODEL.DETR
    return DETRHead(
        input_proj=PlainProjector(in_channels[0], node.HIDDEN_DIM),
        transformer=build_transformer(cfg),
        num_classes=node.NUM_CLASSES,
        num_queries=node.NUM_QUERIES,
    )
