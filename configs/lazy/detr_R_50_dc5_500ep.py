from .detr_R_50_500ep import dataloader, lr_multiplier, model, optimizer, train

# As in torchvision, dilation starts at the second block.
model.backbone.stages[3].update(stride_per_block=[1, 1, 1], dilation_per_block=[1, 2, 2])
train.output_dir = "output/detr_R_50_dc5_500ep"
