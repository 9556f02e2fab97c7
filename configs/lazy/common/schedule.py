from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

# A tenth after 40 of 50 epochs, whatever train.max_iter is.
lr_multiplier_50ep = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[40], num_updates=50)
