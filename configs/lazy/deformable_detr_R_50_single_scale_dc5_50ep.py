from .deformable_detr_R_50_single_scale_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

# As in torchvision and DETR, dilation starts at the second block.
model.backbone.stages[3].update(stride_per_block=[1, 1, 1], dilation_per_block=[1, 2, 2])
train.output_dir = "output/deformable_detr_R_50_single_scale_dc5_50ep"
