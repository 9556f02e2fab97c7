# The quick start on a small DAT, from random weights.
from detectron2.config import LazyCall as L

from detectron2_ddetr.backbones.dat import DAT_SIZES, DATBackbone

from .quick_start_from_scratch import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(DATBackbone)(**DAT_SIZES["DAT-XS"], out_indices=[1, 2, 3])
model.in_features = ["stride8", "stride16", "stride32"]
model.head.input_proj.in_channels = [64, 128, 256]
train.output_dir = "output/quick_start_dat"
