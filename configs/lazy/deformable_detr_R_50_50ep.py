from .common.data import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier_50ep as lr_multiplier
from .common.train import train

train.output_dir = "output/deformable_detr_R_50_50ep"
