from detectron2.config import LazyCall as L

from detectron2_ddetr.backbones.dat import DAT_SIZES, DATBackbone

from .deformable_detr_DAT_T_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(DATBackbone)(**DAT_SIZES["DAT-T++"], out_indices=[1, 2, 3])
model.head.input_proj.in_channels = [128, 256, 512]

train.init_checkpoint = "dat_pp_tiny_in1k_224.pth"
train.output_dir = "output/deformable_detr_DAT_T_plus_plus_50ep"
