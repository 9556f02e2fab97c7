from detectron2.config import LazyCall as L

from detectron2_ddetr.backbones.dat import DAT_SIZES, DATBackbone

from .common.data import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier_50ep as lr_multiplier
from .common.train import train

model.backbone = L(DATBackbone)(**DAT_SIZES["DAT-T"], out_indices=[1, 2, 3])
model.in_features = ["stride8", "stride16", "stride32"]
model.head.input_proj.in_channels = [192, 384, 768]

train.init_checkpoint = "dat_tiny_in1k_224.pth"
train.output_dir = "output/deformable_detr_DAT_T_50ep"
