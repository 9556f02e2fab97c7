"""The ground truth of images that are inspected, from a COCO json."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.coco_json import read_coco_json
from ...errors import InputError
from ...modeling import box_xyxy_to_cxcywh
from ...toolbox import BoxMode


class Truth:
    """Boxes by the name of the file they are in."""

    def __init__(self, json_file: str, class_names: Sequence[str], num_classes: int):
        """
        Args:
            json_file: in COCO's object detection format.
            class_names: of the model; empty if they are not known: then classes go by their order.
            num_classes: of the model.

        Raises:
            MissingFileError, InputError: if the json is not there or not sound, or has classes that
                the model does not have.
        """
        data = read_coco_json(json_file, None)
        known = list(class_names) or data.class_names
        unknown = [name for name in data.class_names if name not in known]
        if unknown or len(known) > num_classes:
            what = f"a class {unknown[0]!r}" if unknown else f"{len(known)} classes"
            has = f"has {', '.join(class_names)}" if class_names else f"has {num_classes}"
            raise InputError(f"{json_file} has {what}, the model {has}: give the json of its data")
        self.json_file = json_file
        self._dicts: dict[str, dict] = {}
        for record in data.dataset_dicts("", [known.index(name) for name in data.class_names]):
            name = os.path.basename(record["file_name"])
            if name in self._dicts:
                raise InputError(
                    f"{json_file} has two images called {name}: it is by their names that boxes "
                    "are found"
                )
            self._dicts[name] = record

    def target_of(self, path: str, width: int, height: int) -> dict[str, Tensor]:
        """
        Args:
            path: of an image.
            width, height: of it, px.

        Returns:
            "labels" (T,), "boxes" (T, 4), (cx, cy, w, h) in [0, 1]; without crowd regions.

        Raises:
            InputError: if the json does not have it.
        """
        record = self._dicts.get(os.path.basename(path))
        if record is None:
            raise InputError(
                f"{self.json_file} has no image called {os.path.basename(path)}: give the json "
                "that has it, or leave --truth out"
            )
        found = [a for a in record["annotations"] if not a["iscrowd"]]
        corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
        boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
        size = torch.tensor((width, height, width, height), dtype=torch.float32)
        boxes = (boxes / size).clamp(0, 1)
        labels = torch.tensor([a["category_id"] for a in found], dtype=torch.int64)
        return {"labels": labels, "boxes": box_xyxy_to_cxcywh(boxes)}
