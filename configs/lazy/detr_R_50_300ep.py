# The authors' recipe: 300 epochs at batch 64, of 1 848 iterations; the rate drops after 200.
from detectron2.config import LazyCall as L

from detectron2_ddetr import DETR
from detectron2_ddetr.modeling import (
    DenseTransformer,
    DETRHead,
    PlainProjector,
    SoftmaxCriterion,
    SoftmaxMatcher,
)

from .common.data import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier_300ep as lr_multiplier
from .common.train import train

model._target_ = DETR
model.backbone.out_features = ["res5"]
model.head = L(DETRHead)(
    input_proj=L(PlainProjector)(in_channels=2048, d_model="${..transformer.d_model}"),
    transformer=L(DenseTransformer)(
        d_model=256,
        n_heads=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        dim_feedforward=2048,
        dropout=0.1,
    ),
    num_classes=80,
    num_queries=100,
)
model.criterion = L(SoftmaxCriterion)(
    matcher=L(SoftmaxMatcher)(cost_class=1.0, cost_bbox=5.0, cost_giou=2.0),
    loss_ce_weight=1.0,
    loss_bbox_weight=5.0,
    loss_giou_weight=2.0,
    no_object_weight=0.1,
)
dataloader.train.total_batch_size = 64
optimizer.lr = 1e-4
optimizer.params.linear_proj_multiplier = 1.0
train.update(
    max_iter=300 * 1848,
    eval_period=10 * 1848,
    output_dir="output/detr_R_50_300ep",
)
train.checkpointer.period = 10 * 1848
