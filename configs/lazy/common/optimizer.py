from detectron2.config import LazyCall as L

from detectron2_ddetr.engine.optimizer import FullModelClipAdamW, parameter_groups

optimizer = L(FullModelClipAdamW)(
    # params.model is set by whoever trains.
    params=L(parameter_groups)(
        base_lr="${..lr}",
        backbone_multiplier=0.1,
        linear_proj_multiplier=0.1,
    ),
    max_norm=0.1,
    lr=2e-4,
    weight_decay=1e-4,
)
