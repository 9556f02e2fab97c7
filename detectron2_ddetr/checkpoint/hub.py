"""A local folder of Hugging Face transformers: config.json beside model.safetensors."""

import json
import os
import re
from typing import Any

from ..errors import InputError
from .coco_classes import are_coco_classes
from .entries import CLASS_NAMES, DILATED, LICENCE, REFINES

_CONFIG, _CARD = "config.json", "README.md"
#: Files of weights in such a folder, the first of which is taken.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: {model_type: the class of transformers that reads such a folder}
_ARCHITECTURES = {
    "deformable_detr": "DeformableDetrForObjectDetection",
    "detr": "DetrForObjectDetection",
}


def weights_of_folder(folder: str) -> str | None:
    """The file of weights, or their index, in a folder of transformers; None if it is none."""
    if not os.path.isfile(os.path.join(folder, _CONFIG)):
        return None
    paths = [os.path.join(folder, name) for name in WEIGHTS]
    return next(filter(os.path.isfile, paths), None)


def entries_beside(path: str) -> dict[str, Any]:
    """
    What the config.json beside a file of weights says of them, as entries of a checkpoint.

    Returns:
        {} where there is no config.json, or none of (Deformable) DETR. Names of classes only where
        they are not those of COCO by row, which other checkpoints have, too, without saying so.

    Raises:
        InputError: if it is damaged, or does not name the classes by row.
    """
    config_file = os.path.join(os.path.dirname(path), _CONFIG)
    if os.path.basename(path) not in WEIGHTS or not os.path.isfile(config_file):
        return {}
    try:
        with open(config_file, encoding="utf-8") as file:
            config = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config_file}: is no JSON ({error}); download it again") from error
    if not isinstance(config, dict) or config.get("model_type") not in _ARCHITECTURES:
        return {}
    entries: dict[str, Any] = {}
    for theirs, ours in (("with_box_refine", REFINES), ("dilation", DILATED)):
        if isinstance(config.get(theirs), bool):
            entries[ours] = config[theirs]
    names = _names(config.get("id2label") or {}, config_file)
    if names and not are_coco_classes(names):
        entries[CLASS_NAMES] = names
    if licence := _licence(os.path.join(os.path.dirname(path), _CARD)):
        entries[LICENCE] = licence
    return entries


def _names(id2label: Any, config_file: str) -> list[str]:
    """By row; [] where they are but numbers."""
    if not isinstance(id2label, dict) or id2label.keys() != set(map(str, range(len(id2label)))):
        raise InputError(f"{config_file}: id2label must name the classes by row, from 0")
    names = [id2label[str(row)] for row in range(len(id2label))]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{config_file}: id2label must name the classes by row, from 0")
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return []
    return ["" if name == "N/A" else name for name in names]


def _licence(card: str) -> str:
    """Of the first lines of a model card, between the lines of three dashes."""
    if not os.path.isfile(card):
        return ""
    with open(card, encoding="utf-8", errors="replace") as file:
        head = re.match(r"---\n(.*?)\n---", file.read(20_000), re.DOTALL)
    found = re.search(r"^licen[sc]e: *([\w. -]+)$", head[1], re.MULTILINE) if head else None
    return found[1].strip() if found else ""


def config_of(*, model_type: str, rows: list[str], dilated: bool, **others: Any) -> dict[str, Any]:
    """
    The config.json of a model with the ResNet of timm.

    Args:
        rows: the name of each class row, "" for one that no class has.
        others: sizes and switches as transformers calls them.
    """
    names = [name or "N/A" for name in rows]
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "dilation": dilated,
        "id2label": {str(row): name for row, name in enumerate(names)},
        "label2id": {name: row for row, name in enumerate(names)},
        **others,
    }
