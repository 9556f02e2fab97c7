from .common.schedule import lr_multiplier_36ep as lr_multiplier
from .h_deformable_detr_R_50_12ep import dataloader, model, optimizer, train

train.max_iter = 36 * 7392
train.output_dir = "output/h_deformable_detr_R_50_36ep"
