#!/usr/bin/env python
"""
Train or evaluate, as detectron2's own train_net.py does; `ddetr train` is the same.

    python train_net.py --config-file configs/X.yaml [KEY VALUE ...]

On data of your own, a COCO json and a folder of images each:

    python train_net.py --config-file configs/X.yaml --train a.json images/ --val b.json images/
"""

from detectron2_ddetr.commands import run_everywhere
from detectron2_ddetr.engine.run import run_argument_parser
from detectron2_ddetr.errors import explained

if __name__ == "__main__":
    arguments = run_argument_parser(__doc__).parse_args()
    with explained(arguments.traceback):
        run_everywhere(arguments)
