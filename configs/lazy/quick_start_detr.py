# The blood cells with DETR, of whose cells an image of 320x240 has few: DC5.
from detectron2_ddetr import DETR

from .common.blood_cells import dataloader, lr_multiplier, model, optimizer, train
from .detr_R_50_dc5_500ep import model as published

model._target_ = DETR
model.backbone.out_features = ["res5"]
model.backbone.stages[3].update(stride_per_block=[1, 1, 1], dilation_per_block=[1, 2, 2])
sizes = ("d_model", "n_heads", "num_encoder_layers", "num_decoder_layers", "dim_feedforward")
published.head.transformer.update({key: model.head.transformer[key] for key in (*sizes, "dropout")})
model.head = published.head
model.head.update(num_classes=3, num_queries=60)
model.head.input_proj.in_channels = 256
model.criterion = published.criterion
train.output_dir = "output/quick_start_detr"
