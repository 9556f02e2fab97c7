# The blood cells with DINO.
from detectron2_ddetr import DINO
from detectron2_ddetr.modeling import DINOTransformer

from .common.blood_cells import dataloader, lr_multiplier, model, optimizer, train
from .dino_4scale_R_50_12ep import model as published

model._target_ = DINO
model.head.update(
    look_forward_twice=True,
    shared_heads=True,
    inverse_sigmoid_eps=1e-3,
    position_embedding=published.head.position_embedding,
    denoising=published.head.denoising,
)
model.head.position_embedding.num_pos_feats = 64
model.head.transformer._target_ = DINOTransformer
model.criterion.loss_ce_weight = 1.0
model.criterion.giou_eps = model.criterion.matcher.giou_eps = 1e-6
train.output_dir = "output/quick_start_dino"
