# The rate drops after 400 of 500 epochs.
from .common.schedule import lr_multiplier_500ep as lr_multiplier
from .detr_R_50_300ep import dataloader, model, optimizer, train

train.update(max_iter=500 * 1848, output_dir="output/detr_R_50_500ep")
