from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet

from detectron2_ddetr import DeformableDETR
from detectron2_ddetr.modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    FeatureProjector,
    HungarianMatcher,
    SetCriterion,
)

model = L(DeformableDETR)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        # ResNet-50; ResNet.make_default_stages would dilate all stages or none.
        stages=[
            L(ResNet.make_stage)(
                block_class=BottleneckBlock,
                num_blocks=num_blocks,
                stride_per_block=[1 if width == 64 else 2] + [1] * (num_blocks - 1),
                in_channels=64 if width == 64 else 2 * width,
                bottleneck_channels=width,
                out_channels=4 * width,
                stride_in_1x1=False,
                norm="${...stem.norm}",
            )
            for num_blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512))
        ],
        out_features=["res3", "res4", "res5"],
        freeze_at=2,
    ),
    in_features="${.backbone.out_features}",
    head=L(DeformableDETRHead)(
        input_proj=L(FeatureProjector)(
            in_channels=[512, 1024, 2048],
            d_model="${..transformer.d_model}",
            num_levels="${..transformer.n_levels}",
        ),
        transformer=L(DeformableTransformer)(
            d_model=256,
            n_heads=8,
            num_encoder_layers=6,
            num_decoder_layers=6,
            dim_feedforward=1024,
            dropout=0.1,
            n_levels=4,
            enc_n_points=4,
            dec_n_points=4,
        ),
        num_classes=80,
        num_queries=300,
        with_box_refine=False,
    ),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        loss_ce_weight=2.0,
        loss_bbox_weight=5.0,
        loss_giou_weight=2.0,
        focal_alpha=0.25,
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    num_detections=100,
)
