"""ResNet with the dilation of torchvision and DETR."""

from ..toolbox import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec, build_resnet_backbone


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """
    detectron2's ResNet, except that dilation starts at the second block of res5.

    MODEL.RESNETS.RES5_DILATION 2 (DC5) makes detectron2 dilate the first block too. The weights
    are the same but the features are not, and official DC5 checkpoints lose about one AP.
    """
    backbone = build_resnet_backbone(cfg, input_shape)
    if cfg.MODEL.RESNETS.RES5_DILATION > 1:
        first = backbone.res5[0].conv2
        first.dilation, first.padding = (1, 1), (1, 1)
    return backbone
