# 12 epochs at batch 16; the rate drops after 11. All layers but the backbone learn at one rate.
from detectron2.config import LazyCall as L

from detectron2_ddetr import DINO
from detectron2_ddetr.modeling import Denoising, DINOTransformer, PositionEmbeddingSine

from .common.data import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier_12ep as lr_multiplier
from .common.train import train

model._target_ = DINO
model.num_detections = 300
model.head.update(
    num_queries=900,
    with_box_refine=True,
    look_forward_twice=True,
    shared_heads=True,
    inverse_sigmoid_eps=1e-3,
    # Half the channels of the transformer for each axis.
    position_embedding=L(PositionEmbeddingSine)(num_pos_feats=128, temperature=20.0, offset=0.0),
    denoising=L(Denoising)(
        num_classes="${..num_classes}",
        d_model="${..transformer.d_model}",
        num_queries=100,
        label_noise=0.25,
        box_noise=1.0,
    ),
)
model.head.transformer._target_ = DINOTransformer
model.head.transformer.update(num_queries="${..num_queries}", dim_feedforward=2048, dropout=0.0)
model.criterion.loss_ce_weight = 1.0
model.criterion.giou_eps = model.criterion.matcher.giou_eps = 1e-6
dataloader.train.total_batch_size = 16
optimizer.lr = 1e-4
optimizer.params.linear_proj_multiplier = 1.0
train.update(
    max_iter=12 * 7392,
    eval_period=7392,
    output_dir="output/dino_4scale_R_50_12ep",
)
train.checkpointer.period = 7392
