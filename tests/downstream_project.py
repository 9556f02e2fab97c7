"""A project that knows the plugin alone: python downstream_project.py JSON IMAGES FOLDER PHOTO"""

import sys

from detectron2_ddetr import (
    DETR_CRITERION_REGISTRY,
    Predictor,
    Trainer,
    build_criterion,
    load_config,
    model_zoo,
    register_coco_json,
)


@DETR_CRITERION_REGISTRY.register()
def build_gentle_criterion(cfg):
    """The usual one, whose class loss counts half."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.CRITERION = "build_set_criterion"
    cfg.MODEL.DETR.LOSS_CE_WEIGHT /= 2
    return build_criterion(cfg)


if __name__ == "__main__":
    json_file, images, folder, photo, *opts = sys.argv[1:]
    register_coco_json("mine", json_file, images)
    own = ["DATASETS.TRAIN", "mine", "DATASETS.TEST", "mine", "OUTPUT_DIR", folder]
    own += ["MODEL.DETR.CRITERION", "build_gentle_criterion", *opts]
    config_file = model_zoo.get_config_file("quick_start.yaml")
    trainer = Trainer(load_config(config_file, own))
    trainer.resume_or_load(resume=False)
    trainer.train()
    own += ["MODEL.WEIGHTS", f"{folder}/model_final.pth"]
    print(Predictor(load_config(config_file, own)).plain(photo))
