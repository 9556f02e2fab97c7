# The quick start with modulated deformable convolutions in res3, res4 and res5.
from detectron2.config import LazyCall as L

from detectron2_ddetr.backbones.deformable_resnet import with_deformable_convolutions

from .quick_start import dataloader, lr_multiplier, model, optimizer, train

stages = ["res3", "res4", "res5"]
model.in_features = stages
model.backbone = L(with_deformable_convolutions)(
    backbone=model.backbone, stages=stages, modulated=True
)
del stages
train.output_dir = "output/quick_start_dcnv2"
