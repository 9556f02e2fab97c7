from .common.schedule import lr_multiplier_36ep as lr_multiplier
from .dino_4scale_R_50_12ep import dataloader, model, optimizer, train

train.max_iter = 36 * 7392
train.output_dir = "output/dino_4scale_R_50_36ep"
