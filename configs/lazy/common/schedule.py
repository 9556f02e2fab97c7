from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler


def drop_after(epoch, num_epochs):
    """A tenth after `epoch` of `num_epochs` epochs, whatever train.max_iter is."""
    return L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[epoch], num_updates=num_epochs)


lr_multiplier_12ep = drop_after(11, 12)
lr_multiplier_24ep = drop_after(20, 24)
lr_multiplier_36ep = drop_after(30, 36)
lr_multiplier_50ep = drop_after(40, 50)
lr_multiplier_300ep = drop_after(200, 300)
lr_multiplier_500ep = drop_after(400, 500)
