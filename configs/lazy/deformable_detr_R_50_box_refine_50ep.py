from .deformable_detr_R_50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.head.with_box_refine = True
train.output_dir = "output/deformable_detr_R_50_box_refine_50ep"
