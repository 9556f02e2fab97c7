# 50 epochs at batch 16; the rate drops after 40. All layers but the backbone learn at one rate.
from detectron2_ddetr import DABDeformableDETR
from detectron2_ddetr.modeling import AnchorTransformer

from .deformable_detr_R_50_box_refine_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model._target_ = DABDeformableDETR
model.head.inverse_sigmoid_eps = 1e-3
model.head.transformer._target_ = AnchorTransformer
model.head.transformer.update(num_queries="${..num_queries}", dim_feedforward=2048, dropout=0.0)
model.criterion.loss_ce_weight = 1.0
model.criterion.giou_eps = model.criterion.matcher.giou_eps = 1e-6
dataloader.train.total_batch_size = 16
optimizer.lr = 1e-4
optimizer.params.linear_proj_multiplier = 1.0
train.update(
    max_iter=50 * 7392,
    eval_period=5 * 7392,
    output_dir="output/dab_deformable_detr_R_50_50ep",
)
train.checkpointer.period = 7392
