# Blood cells, from random weights, in minutes on two CPU cores: a thin ResNet-50, the four levels
# of the paper, images of 320x240, two-stage with refinement. All layers learn at one rate.
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from detectron2_ddetr.data.augmentation import RandomFlipBoth, ResizeShortSide

from ..deformable_detr_R_50_two_stage_50ep import dataloader, model, optimizer, train

model.backbone.stem.update(out_channels=16, norm="BN")
for i, width in enumerate((16, 32, 64, 128)):
    model.backbone.stages[i].update(
        in_channels=width, bottleneck_channels=width, out_channels=2 * width
    )
model.backbone.freeze_at = 0
model.head.update(num_classes=3, num_queries=60)
model.head.input_proj.in_channels = [64, 128, 256]
model.head.transformer.update(
    d_model=128,
    n_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dim_feedforward=128,
    dropout=0.0,
)

dataloader.train.dataset.names = "bccd_train"
dataloader.train.mapper.augmentations = [
    L(RandomFlipBoth)(),  # cells have no side that is up
    L(ResizeShortSide)(short_sides=[240], max_size=400),
]
dataloader.train.update(total_batch_size=8, num_workers=0)
dataloader.test.dataset.names = "bccd_val"
dataloader.test.mapper.augmentations[0].update(short_sides=[240], max_size=400)
dataloader.test.num_workers = 0

optimizer.lr = 1e-3
optimizer.params.update(backbone_multiplier=1.0, linear_proj_multiplier=1.0)

train.update(
    init_checkpoint="",
    max_iter=840,
    eval_period=280,
    device="cpu",
)
train.checkpointer.period = 280

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=50 / train.max_iter,
    warmup_factor=0.001,
)
