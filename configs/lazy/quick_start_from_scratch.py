# Deformable DETR ++ with three tricks of DINO, without which so short a training ends far behind.
from detectron2.config import LazyCall as L

from detectron2_ddetr.modeling import Denoising

from .common.blood_cells import dataloader, lr_multiplier, model, optimizer, train

model.head.look_forward_twice = True
model.head.transformer.mixed_selection = True
model.head.denoising = L(Denoising)(
    num_classes="${..num_classes}",
    d_model="${..transformer.d_model}",
    num_queries=100,
    label_noise=0.25,
    box_noise=1.0,
    inverse_sigmoid_eps=1e-5,
)
train.output_dir = "output/quick_start_from_scratch"
