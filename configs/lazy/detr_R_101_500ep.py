from .detr_R_50_500ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.stages[2].update(num_blocks=23, stride_per_block=[2] + [1] * 22)
# torchvision, IMAGENET1K_V1.
train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
train.output_dir = "output/detr_R_101_500ep"
