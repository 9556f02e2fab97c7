from detectron2_ddetr.modeling import TwoStageDeformableTransformer

from .deformable_detr_R_50_box_refine_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.head.transformer._target_ = TwoStageDeformableTransformer
model.head.transformer.num_queries = "${..num_queries}"
train.output_dir = "output/deformable_detr_R_50_two_stage_50ep"
