from detectron2.config import LazyCall as L

from detectron2_ddetr.backbones.deformable_resnet import with_deformable_convolutions


def add_dcnv2(model):
    """Modulated deformable convolutions in res3, res4 and res5."""
    model.in_features = ["res3", "res4", "res5"]
    model.backbone = L(with_deformable_convolutions)(
        backbone=model.backbone, stages=["res3", "res4", "res5"], modulated=True
    )
