"""predictions.png while a model trains."""

import os
from collections import defaultdict

import torch

from ..data.image_files import read_image
from ..engine.detections_file import FILE_NAME, read_detections
from ..engine.evaluator import detections_folder
from ..engine.ground_truth import GroundTruth
from ..engine.trainer import Trainer
from ..toolbox import Boxes, DatasetCatalog, Instances, MetadataCatalog
from .choice import choose_images
from .predictions import predictions_beside_ground_truth

#: As `ddetr visualize` draws them.
NUM_IMAGES, SCORE_THRESHOLD = 4, 0.4


def draw_predictions(trainer: Trainer) -> None:
    """
    Draws predictions.png in OUTPUT_DIR, and in TensorBoard where it is installed: the detections
    of the evaluation that has just ended beside the ground truth, always for the same images of
    the first test set.
    """
    cfg = trainer.cfg
    name = cfg.DATASETS.TEST[0]
    truth = GroundTruth(name)
    labels = {category: label for label, category in truth.category_ids.items()}
    found = defaultdict(list)
    for detection in read_detections(os.path.join(detections_folder(cfg, name), FILE_NAME), truth):
        found[detection["image_id"]].append(detection)
    images = choose_images(DatasetCatalog.get(name), NUM_IMAGES)
    path = os.path.join(cfg.OUTPUT_DIR, "predictions.png")
    predictions_beside_ground_truth(
        [(image, _instances(image, found[image["image_id"]], labels)) for image in images],
        getattr(MetadataCatalog.get(name), "thing_classes", ()),
        path,
        score_threshold=SCORE_THRESHOLD,
    )
    trainer.put_image("predictions", read_image(path))


def _instances(image: dict, detections: list[dict], labels: dict[int | str, int]) -> Instances:
    """Detections of a file as the model gave them, in px of the image."""
    boxes = torch.tensor([d["bbox"] for d in detections], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        # Which not every registered data set says, and no picture asks for.
        (image.get("height", 0), image.get("width", 0)),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([d["score"] for d in detections], dtype=torch.float32),
        pred_classes=torch.tensor(
            [labels[d["category_id"]] for d in detections], dtype=torch.int64
        ),
    )
