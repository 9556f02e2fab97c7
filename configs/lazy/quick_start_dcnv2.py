# The quick start from scratch with modulated deformable convolutions in res3, res4 and res5.
from .common.dcnv2 import add_dcnv2
from .quick_start_from_scratch import dataloader, lr_multiplier, model, optimizer, train

add_dcnv2(model)
train.output_dir = "output/quick_start_dcnv2"
