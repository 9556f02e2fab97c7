#!/usr/bin/env python
"""
Train or evaluate, as detectron2's own train_net.py does; `ddetr train` is the same.

    python train_net.py --config-file configs/X.yaml [KEY VALUE ...]

On a COCO json of your own, say what to call it, where it is, and how many classes it has:

    python train_net.py --config-file configs/X.yaml --dataset cats cats.json images/ \\
        DATASETS.TRAIN cats DATASETS.TEST cats MODEL.DETR.NUM_CLASSES 2
"""

from detectron2_ddetr.cli import run_everywhere
from detectron2_ddetr.engine.run import run_argument_parser
from detectron2_ddetr.errors import explained

if __name__ == "__main__":
    arguments = run_argument_parser(__doc__).parse_args()
    with explained(arguments.traceback):
        run_everywhere(arguments)
