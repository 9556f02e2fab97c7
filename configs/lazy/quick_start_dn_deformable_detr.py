# The blood cells with DN-Deformable-DETR.
from detectron2_ddetr import DNDeformableDETR

from .dn_deformable_detr_R_50_50ep import model as published
from .quick_start_dab_deformable_detr import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model._target_ = DNDeformableDETR
model.head.denoising = published.head.denoising
train.output_dir = "output/quick_start_dn_deformable_detr"
