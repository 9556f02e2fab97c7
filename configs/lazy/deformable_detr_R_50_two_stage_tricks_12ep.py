# Deformable DETR ++ with the switches of H-Deformable-DETR but its hybrid matching: 12 epochs at
# batch 16. 118 287 images make 7 392 iterations an epoch; the rate drops after 11.
from .common.schedule import lr_multiplier_12ep as lr_multiplier
from .deformable_detr_R_50_two_stage_50ep import dataloader, model, optimizer, train

model.head.look_forward_twice = True
model.head.transformer.update(mixed_selection=True, dim_feedforward=2048, dropout=0.0)
dataloader.train.total_batch_size = 16
train.update(
    max_iter=12 * 7392,
    eval_period=7392,
    output_dir="output/deformable_detr_R_50_two_stage_tricks_12ep",
)
train.checkpointer.period = 7392
