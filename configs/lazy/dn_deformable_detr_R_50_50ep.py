from detectron2.config import LazyCall as L

from detectron2_ddetr import DNDeformableDETR
from detectron2_ddetr.modeling import Denoising

from .dab_deformable_detr_R_50_50ep import dataloader, lr_multiplier, model, optimizer, train

model._target_ = DNDeformableDETR
model.head.denoising = L(Denoising)(
    num_classes="${..num_classes}",
    d_model="${..transformer.d_model}",
    num_groups=5,
    label_noise=0.2,
    box_noise=0.4,
    negatives=False,
    corner_noise=False,
    indicator=True,
)
train.output_dir = "output/dn_deformable_detr_R_50_50ep"
