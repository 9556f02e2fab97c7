# The blood cells with DAB-Deformable-DETR.
from detectron2_ddetr import DABDeformableDETR
from detectron2_ddetr.modeling import AnchorTransformer

from .common.blood_cells import dataloader, lr_multiplier, model, optimizer, train

model._target_ = DABDeformableDETR
model.head.inverse_sigmoid_eps = 1e-3
model.head.transformer._target_ = AnchorTransformer
model.criterion.loss_ce_weight = 1.0
model.criterion.giou_eps = model.criterion.matcher.giou_eps = 1e-6
train.output_dir = "output/quick_start_dab_deformable_detr"
