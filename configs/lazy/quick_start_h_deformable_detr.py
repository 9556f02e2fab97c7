# The blood cells with H-Deformable-DETR.
from detectron2.config import LazyCall as L

from detectron2_ddetr import HDeformableDETR
from detectron2_ddetr.modeling import OneToMany

from .common.blood_cells import dataloader, lr_multiplier, model, optimizer, train

model._target_ = HDeformableDETR
model.head.look_forward_twice = True
model.head.one_to_many = L(OneToMany)(num_queries=120, repeats=6, loss_weight=1.0)
model.head.transformer.mixed_selection = True
train.output_dir = "output/quick_start_h_deformable_detr"
