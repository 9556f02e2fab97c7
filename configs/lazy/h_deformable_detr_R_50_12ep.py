from detectron2.config import LazyCall as L

from detectron2_ddetr import HDeformableDETR
from detectron2_ddetr.modeling import OneToMany

from .deformable_detr_R_50_two_stage_tricks_12ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model._target_ = HDeformableDETR
model.head.one_to_many = L(OneToMany)(num_queries=1500, repeats=6, loss_weight=1.0)
train.output_dir = "output/h_deformable_detr_R_50_12ep"
