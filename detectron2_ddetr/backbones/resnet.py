"""ResNet with the dilation of torchvision and DETR, and with deformable convolutions."""

from ..errors import InputError
from ..toolbox import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec, build_resnet_backbone
from .deformable_resnet import with_deformable_convolutions

_CHOICES = {
    "DEPTH": (18, 34, 50, 101, 152),
    "RES5_DILATION": (1, 2),
    "NORM": (
        "FrozenBN",
        "BN",
        "SyncBN",
        "GN",
        "",
        "LN",
        "nnSyncBN",
        "naiveSyncBN",
        "naiveSyncBN_N",
    ),
}
_WIDTHS = ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "NUM_GROUPS", "WIDTH_PER_GROUP")
_OUTPUTS = ("stem", "res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """
    detectron2's ResNet, with two exceptions:

    * Dilation starts at the second block of res5. MODEL.RESNETS.RES5_DILATION 2 (DC5) makes
      detectron2 dilate the first block too. The weights are the same but the features are not,
      and official DC5 checkpoints lose about one AP.
    * The deformable convolutions of MODEL.RESNETS.DEFORM_ON_PER_STAGE are
      :mod:`.deformable_resnet`'s.

    Raises:
        InputError: for values of MODEL.RESNETS that make no ResNet.
    """
    node = cfg.MODEL.RESNETS
    _check(node)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * len(node.DEFORM_ON_PER_STAGE)
    backbone = build_resnet_backbone(plain, input_shape)
    if node.RES5_DILATION > 1:
        first = backbone.res5[0].conv2
        first.dilation, first.padding = (1, 1), (1, 1)
    stages = zip(_OUTPUTS[1:], node.DEFORM_ON_PER_STAGE, strict=True)
    return with_deformable_convolutions(
        backbone,
        [name for name, deformable in stages if deformable and hasattr(backbone, name)],
        modulated=node.DEFORM_MODULATED,
        num_groups=node.DEFORM_NUM_GROUPS,
    )


def _check(node: CfgNode) -> None:
    """Raises InputError for values of MODEL.RESNETS that make no ResNet."""
    prefix = "MODEL.RESNETS."
    for key, choices in _CHOICES.items():
        if node[key] not in choices:
            known = ", ".join(map(repr, choices))
            raise InputError(f"{prefix}{key} must be one of {known}, got {node[key]!r}")
    for key in _WIDTHS:
        if node[key] < 1:
            raise InputError(f"{prefix}{key} must be at least 1, got {node[key]}")
    if not node.OUT_FEATURES or not set(node.OUT_FEATURES) <= set(_OUTPUTS):
        raise InputError(
            f"{prefix}OUT_FEATURES must name some of {', '.join(_OUTPUTS)}, got "
            f"{node.OUT_FEATURES}"
        )
    small = (node.RES2_OUT_CHANNELS, node.RES5_DILATION, node.NUM_GROUPS) == (64, 1, 1)
    if node.DEPTH < 50 and not small:
        raise InputError(
            f"{prefix}DEPTH {node.DEPTH} needs RES2_OUT_CHANNELS 64, RES5_DILATION 1 and "
            f"NUM_GROUPS 1, got {node.RES2_OUT_CHANNELS}, {node.RES5_DILATION} and "
            f"{node.NUM_GROUPS}"
        )
    deformable = node.DEFORM_ON_PER_STAGE
    if len(deformable) != 4 or not all(isinstance(on, bool) for on in deformable):
        raise InputError(
            f"{prefix}DEFORM_ON_PER_STAGE must be True or False for each of res2, res3, res4 and "
            f"res5, got {deformable}"
        )
    if node.DEPTH < 50 and any(deformable):
        raise InputError(
            f"{prefix}DEFORM_ON_PER_STAGE is {deformable}, but a ResNet of DEPTH {node.DEPTH} has "
            "no bottlenecks, whose convolutions they are: set DEPTH to 50 or more"
        )
    width = node.NUM_GROUPS * node.WIDTH_PER_GROUP
    if node.NORM == "GN" and any(
        channels % 32 for channels in (node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS, width)
    ):
        raise InputError(
            f"{prefix}NORM GN has 32 groups, so STEM_OUT_CHANNELS ({node.STEM_OUT_CHANNELS}), "
            f"RES2_OUT_CHANNELS ({node.RES2_OUT_CHANNELS}) and NUM_GROUPS * WIDTH_PER_GROUP "
            f"({width}) must be divisible by 32"
        )
