"""The most that a training can need, measured before it begins."""

import datetime
import resource
import sys
import time
from collections.abc import Iterable

import torch

from ..data.augmentation import resized_shape
from ..toolbox import Boxes, CfgNode, Instances, comm, get_detection_dataset_dicts
from .trainer import Trainer

#: The first allocates the moments of the optimiser; the time is that of the others.
_STEPS = 3


def dry_run(trainer: Trainer) -> str:
    """
    Trains a few steps on the largest images that the training sets can give, each with as many
    boxes as any has; nothing is written.

    Returns:
        Seconds of a step and peak memory of this process, in a sentence.
    """
    cfg = trainer.cfg
    dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    sizes = largest_sizes(cfg, [(d["height"], d["width"]) for d in dataset_dicts])
    boxes = max(len(d.get("annotations", ())) for d in dataset_dicts)
    images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    batch = [
        _image(*sizes[i % len(sizes)], boxes, cfg.MODEL.DETR.NUM_CLASSES) for i in range(images)
    ]
    cuda = trainer.cfg.MODEL.DEVICE.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        trainer.update(batch)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step = min(seconds[1:])
    memory = torch.cuda.max_memory_allocated() if cuda else _peak_resident()
    height, width = (max(size[axis] for size in sizes[:images]) for axis in (0, 1))
    total = datetime.timedelta(seconds=round(step * cfg.SOLVER.MAX_ITER))
    return (
        f"dry run: a step with {images} images, padded to {width}x{height}, and {boxes} boxes in "
        f"each, the most that this data can give, takes {step:.3g} s and {memory / 2**30:.2f} GiB "
        f"({'of the GPU' if cuda else 'of memory'}, each process); {cfg.SOLVER.MAX_ITER} "
        f"iterations take at most {total}, evaluations apart"
    )


def largest_sizes(cfg: CfgNode, shapes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """
    Args:
        shapes: (height, width) of the images, px.

    Returns:
        (height, width) of the highest and of the widest image that the augmentation can make of
        them: a batch with both is padded to the height of one and the width of the other.
    """
    shapes = set(shapes)
    if cfg.INPUT.CROP.ENABLED:  # windows of any of these proportions
        shortest, longest = cfg.INPUT.CROP.SIZE
        shapes |= {(shortest, longest), (longest, shortest)}
    sides = [side for side in cfg.INPUT.MIN_SIZE_TRAIN if side] or [0]
    rule, limit = cfg.INPUT.RESIZE_RULE, cfg.INPUT.MAX_SIZE_TRAIN
    made = [resized_shape(*s, side, limit, rule) if side else s for s in shapes for side in sides]
    if 0 in cfg.INPUT.MIN_SIZE_TRAIN:  # the size is left alone
        made += shapes
    return [max(made), max(made, key=lambda size: size[::-1])]


def _image(height: int, width: int, boxes: int, classes: int) -> dict:
    """Noise, and boxes at random."""
    instances = Instances((height, width))
    corners = torch.rand(boxes, 2, 2).sort(dim=1).values * torch.tensor([width, height])
    corners[:, 1] = corners[:, 1].maximum(corners[:, 0] + 1)
    instances.gt_boxes = Boxes(corners.flatten(1))
    instances.gt_classes = torch.randint(classes, (boxes,))
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "file_name": "an image of the dry run"}


def _peak_resident() -> int:
    """Bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
