from .deformable_detr_R_50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res5"]
model.head.input_proj.in_channels = [2048]
model.head.transformer.n_levels = 1
train.output_dir = "output/deformable_detr_R_50_single_scale_50ep"
