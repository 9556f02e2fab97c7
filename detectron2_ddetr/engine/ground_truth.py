"""The boxes of a registered data set as pycocotools wants them, with the classes of a model."""

import json
from typing import Any

from ..data.coco_dataset import CocoDataset
from ..toolbox import BoxMode, DatasetCatalog, MetadataCatalog
from .box_metrics import indexed


class GroundTruth:
    """What detections in a data set are compared with."""

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: a registered data set, with a "json_file" in COCO's format or without.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.name = dataset_name
        self.coco = indexed(_content(dataset_name))
        names = getattr(metadata, "thing_classes", None) or []
        ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
        #: Category ids by class number, of the classes that the data set has.
        self.category_ids: dict[int, int | str] = (
            {i: j for j, i in ids.items()} if ids else {i: i for i in range(len(names))}
        )
        if self.coco.cats:
            self.category_ids = {i: j for i, j in self.category_ids.items() if j in self.coco.cats}
        #: Category ids by class name; None for a class that the data set does not have.
        self.classes = {name: self.category_ids.get(i) for i, name in enumerate(names)}


def truth_of_file(path: str) -> GroundTruth:
    """
    Of a COCO json that is not registered; no image is looked for.

    Raises:
        MissingFileError, InputError: name the file and what is wrong in it.
    """
    # Read as a registered data set is, so that the same is mended.
    CocoDataset(path, path, None).number_classes(None)
    return GroundTruth(path)


def _content(dataset_name: str) -> dict[str, list[dict[str, Any]]]:
    """A data set in COCO's format; "annotations" is empty if the json has none."""
    metadata = MetadataCatalog.get(dataset_name)
    json_file = getattr(metadata, "json_file", None)
    if json_file is None:
        content = _from_dataset_dicts(dataset_name, metadata.thing_classes)
    else:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    annotations = []
    for number, annotation in enumerate(content.get("annotations", ()), start=1):
        width, height = annotation["bbox"][2:]
        given = {key: value for key, value in annotation.items() if value is not None}
        # The ids are ours, since COCOeval takes a match with annotation 0 for none.
        annotations.append({"area": width * height, "iscrowd": 0, **given, "id": number})
    return {**content, "annotations": annotations}


def _from_dataset_dicts(name: str, classes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Of a data set that has no json file; a category's id is its class number."""
    dataset_dicts = DatasetCatalog.get(name)
    annotations = [
        {
            "image_id": d["image_id"],
            "category_id": a["category_id"],
            "bbox": list(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)),
            "iscrowd": a.get("iscrowd", 0),
        }
        for d in dataset_dicts
        for a in d.get("annotations", ())
    ]
    return {
        "images": [{"id": d["image_id"]} for d in dataset_dicts],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
    }
