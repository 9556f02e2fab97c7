"""The images that an exported file is compared with its model on."""

import argparse
from collections.abc import Sequence

from ..data.given_images import image_paths
from ..engine.ground_truth import GroundTruth, truth_of_file
from ..engine.ids import ids_in_json
from ..engine.run import use_datasets
from ..errors import InputError
from ..toolbox import CfgNode, DatasetCatalog
from .check import Samples


def given_samples(
    images: Sequence[str], truth: str | None, class_names: Sequence[str] | None, limit: int
) -> Samples:
    """
    Args:
        images: paths, folders and patterns.
        truth: a COCO json that has them, or None for no ground truth.
        class_names: of the model.
        limit: at most so many.

    Raises:
        MissingFileError, InputError: for what is not there, or does not fit.
    """
    paths = list(dict.fromkeys(path for given in images for path in image_paths(given)))[:limit]
    if truth is None:
        return Samples(paths)
    ids = ids_in_json(truth, paths, class_names)
    return Samples(paths, truth_of_file(truth), ids.of_path, ids.of_class)


def samples_of_config(cfg: CfgNode, limit: int) -> Samples:
    """
    Of the first data set of DATASETS.TEST.

    Raises:
        MissingFileError, InputError: if there is none, or it is not here or not sound.
    """
    if not cfg.DATASETS.TEST:
        raise InputError(
            "an exported file is compared with its model on images, and DATASETS.TEST is empty: "
            "name some after the run"
        )
    cfg = use_datasets(cfg, argparse.Namespace(dataset=[], opts=[]), eval_only=True)
    name = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)[:limit]
    truth = GroundTruth(name)
    ids = {record["file_name"]: record["image_id"] for record in records}
    return Samples(list(ids), truth, ids, truth.category_ids)
