# Strides 4 to 64.
from .dino_4scale_R_50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.head.input_proj.in_channels = [256, 512, 1024, 2048]
model.head.transformer.n_levels = 5
train.output_dir = "output/dino_5scale_R_50_12ep"
