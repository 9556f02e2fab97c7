"""A picture of training images with their boxes, as the model gets them."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..data.image_files import read_image
from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog, HookBase, MetadataCatalog, comm
from .choice import choose_images
from .drawing import (
    class_color,
    class_name,
    draw_boxes,
    resized,
    side_by_side,
    style_of,
    text_lines,
)
from .marks import legend
from .text import readable, readable_names, shortened

logger = logging.getLogger(__name__)

NUM_IMAGES, COLUMNS = 12, 4
CELL = 480  # long side of one image of the picture, px
FONT = 16  # px
#: Among as many images, drawn by lot, those that show all classes are looked for.
SAMPLE = 500


class DrawTrainingImages(HookBase):
    """Draws train_images.jpg in OUTPUT_DIR before the first step, of DATASETS.TRAIN."""

    def before_train(self) -> None:
        cfg = self.trainer.cfg
        if not comm.is_main_process():
            return
        dataset_dicts = [d for name in cfg.DATASETS.TRAIN for d in DatasetCatalog.get(name)]
        names = getattr(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), "thing_classes", ())
        path = os.path.join(cfg.OUTPUT_DIR, "train_images.jpg")
        draw_training_images(cfg, dataset_dicts, names, path)
        self.trainer.put_image("training images", read_image(path))


def draw_training_images(
    cfg: CfgNode, dataset_dicts: Sequence[dict[str, Any]], class_names: Sequence[str], path: str
) -> None:
    """
    Writes a picture of images that together show all classes, augmented as `cfg` says.

    Args:
        dataset_dicts: of the training images.
        class_names: by class number; empty if they are not known.
        path: of the picture.

    Raises:
        InputError: if there is no image, none can be read, or the picture cannot be written. One
            that cannot be read is left out with a warning.
    """
    if not cv2.haveImageWriter(path):
        raise InputError(f"{path}: no kind of picture ends so; write to a .jpg or .png")
    lot = np.random.default_rng(0).permutation(len(dataset_dicts))[:SAMPLE]
    chosen = choose_images([dataset_dicts[i] for i in lot], NUM_IMAGES)
    if not chosen:
        raise InputError(f"no image to draw into {path}; the data set is empty")
    mapper = DeformableDETRDatasetMapper(cfg, is_train=True)
    samples = []
    for number, dataset_dict in enumerate(chosen):
        try:
            # The key makes the random choices those of this picture, and no others.
            samples.append(mapper({**dataset_dict, "draw": (0, number)}))
        except InputError as error:  # which ends the training when it comes to this image
            logger.warning("%s is drawn without %s", path, error)
    if not samples:
        raise InputError(f"none of {len(chosen)} images can be drawn into {path}: see above")
    names = readable_names(tuple(class_names))
    cells = [_cell(sample, names, cfg.INPUT.FORMAT) for sample in samples]
    rows = [
        side_by_side(cells[i : i + COLUMNS], COLUMNS, CELL) for i in range(0, len(cells), COLUMNS)
    ]
    width = rows[0].shape[1]
    labels = sorted({int(n) for sample in samples for n in sample["instances"].gt_classes})
    classes = [(class_name(label, names), class_color(label)) for label in labels]
    title = f"{len(cells)} of {len(dataset_dicts)} training images, as the model gets them"
    above = [text_lines(title, width, FONT + 4), legend(width, classes, [], FONT, marks=())]
    picture = np.concatenate([*above, *rows])
    if not cv2.imwrite(path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise InputError(f"{path}: cannot be written; check the folder")
    logger.info("Wrote %s", path)


def _cell(sample: dict[str, Any], class_names: Sequence[str], image_format: str) -> np.ndarray:
    """(H, CELL, 3) uint8 RGB: what the mapper returned, under two lines of text."""
    instances = sample["instances"]
    image = sample["image"].permute(1, 2, 0).numpy()  # (H, W, 3)
    image = image[..., ::-1] if image_format == "BGR" else image
    height, width = image.shape[:2]
    enlarged, scale = resized(image, CELL)
    drawn = draw_boxes(
        enlarged,
        instances.gt_boxes.tensor.numpy() * scale,
        instances.gt_classes.tolist(),
        class_names=class_names,
        # The size of the cells is small for one line of colour between two dark ones.
        style=style_of((CELL, CELL), len(instances))._replace(thickness=2),
    )
    name = readable(os.path.basename(sample["file_name"]), "(a name that no font here can write)")
    boxes = len(instances)
    texts = name, f"{sample['width']} x {sample['height']} became {width} x {height}, {boxes} boxes"
    lines = [text_lines(shortened(text, FONT, CELL), CELL, FONT, left=0) for text in texts]
    drawn = np.pad(drawn, ((0, 0), (0, CELL - drawn.shape[1]), (0, 0)), constant_values=255)
    return np.concatenate([*lines, drawn])
