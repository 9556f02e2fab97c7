from .common.dcnv2 import add_dcnv2
from .deformable_detr_R_50_50ep import dataloader, lr_multiplier, model, optimizer, train

add_dcnv2(model)
train.output_dir = "output/deformable_detr_R_50_dcnv2_50ep"
