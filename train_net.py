#!/usr/bin/env python
"""
Train or evaluate Deformable DETR.

    python train_net.py --config-file configs/X.yaml [KEY VALUE ...]

On a COCO json of your own, say what to call it, where it is, and how many classes it has:

    python train_net.py --config-file configs/X.yaml --dataset cats cats.json images/ \\
        DATASETS.TRAIN '("cats",)' DATASETS.TEST '("cats",)' MODEL.DETR.NUM_CLASSES 2
"""

import argparse
import logging

from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.config import load_config
from detectron2_ddetr.data.coco_json import (
    add_dataset_argument,
    check_datasets,
    register_coco_json,
)
from detectron2_ddetr.engine.trainer import Trainer
from detectron2_ddetr.toolbox import (
    CfgNode,
    comm,
    default_argument_parser,
    default_setup,
    describe_toolbox,
    launch,
    setup_logger,
    verify_results,
)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, start logging and check the data sets before anything is built."""
    cfg = load_config(args.config_file, args.opts)
    for name, json_file, image_root in args.dataset:
        register_coco_json(name, json_file, image_root)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="detectron2_ddetr", abbrev_name="ddetr")
    logging.getLogger("detectron2_ddetr").info(f"toolbox: {describe_toolbox()}")
    check_datasets(cfg, eval_only=args.eval_only)
    return cfg


def main(args: argparse.Namespace) -> dict:
    """Runs in every process."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, needs_head=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser(__doc__)
    add_dataset_argument(parser)
    arguments = parser.parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
