"""Data sets that come with the repository, registered as detectron2 registers its own."""

import os

from .coco_dataset import add_coco_dataset


def register_bccd(root: str) -> None:
    """
    Blood cells (3 classes): 292 images to train with, 72 to evaluate on.

    Args:
        root: the folder of data sets, detectron2's $DETECTRON2_DATASETS.
    """
    for split in ("train", "val"):
        add_coco_dataset(
            f"bccd_{split}",
            os.path.join(root, f"bccd/annotations/instances_{split}.json"),
            os.path.join(root, f"bccd/{split}"),
        )


register_bccd(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
