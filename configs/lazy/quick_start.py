# Deformable DETR ++ with three tricks of DINO, on a backbone that knows ImageNet. Its weights are a
# file of the package.
from detectron2.config import LazyCall as L

from detectron2_ddetr.backbones.efficientnet_lite import EfficientNetLite0

from .quick_start_from_scratch import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(EfficientNetLite0)(freeze_at=3)
model.in_features = ["stride8", "stride16", "stride32"]
model.head.input_proj.in_channels = [40, 112, 320]
model.pixel_mean = [127.0, 127.0, 127.0]
model.pixel_std = [128.0, 128.0, 128.0]
train.update(
    init_checkpoint="package://detectron2_ddetr/model_zoo/weights/efficientnet_lite0.pth",
    max_iter=660,
    eval_period=220,
    output_dir="output/quick_start",
)
train.checkpointer.period = 220
lr_multiplier.warmup_length = 50 / train.max_iter
