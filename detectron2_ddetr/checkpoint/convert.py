"""Writes a checkpoint as one of another project."""

import json
import logging
import os
import tempfile
from typing import Any

from ..errors import InputError
from .class_rows import num_class_rows, rows_by_name, take_class_rows
from .coco_classes import are_coco_classes, coco_class_names
from .doctor import Examined, describe, examine, source_of
from .entries import CLASS_NAMES, DILATED, LICENCE, REFINES, SOURCE
from .files import save_atomically
from .hub import WEIGHTS, config_of
from .project import StateDict, is_dense, is_two_stage
from .projects import HERE, PROJECTS
from .safetensors import save_safetensors
from .sizes import config_values, has_usual_resnet
from .train_only import without_train_only

logger = logging.getLogger(__name__)


def convert_file(
    path: str,
    output: str,
    *,
    to: str = HERE.key,
    classes: str = "",
    licence: str | None = None,
    dilated: bool | None = None,
    inference_only: bool = False,
    num_queries: int | None = None,
) -> None:
    """
    Converts a checkpoint and logs what became of its tensors.

    Args:
        path: of a file, or of a folder of Hugging Face transformers.
        output: the file to write, or the folder if `to` is of transformers. Nothing may be there.
        to: a key of :data:`PROJECTS`.
        classes: the class rows of the new file: "same" for those of the old, or a json, a list of
            names or one in COCO's format, whose categories are taken in the order of their ids.
            "" gives COCO's classes the rows that they have in `to`, and keeps others.
        licence: of the weights, to be said in the new file; None for what the old one says.
        dilated: whether the model is of DC5, where the old file does not say.
        inference_only: leave out what only training needs: the label embedding of denoising
            queries, and one-to-many queries.
        num_queries: how many queries detect, where there are one-to-many queries.

    Raises:
        InputError: if it is no checkpoint of Deformable DETR, the classes are not in it, something
            of it has no place in the other project, `num_queries` is needed and not given, or
            `output` is there already.
    """
    if os.path.exists(output):
        raise InputError(f"{output} is there already: delete it, or write to another name")
    found = examine(path)
    logger.info(describe(found))
    if dilated is not None and found.dilated not in (None, dilated):
        raise InputError(f"{path} says that its dilation is {found.dilated}, against what is asked")
    found = found._replace(
        licence=found.licence if licence is None else licence,
        dilated=found.dilated if dilated is None else dilated,
    )
    before = num_class_rows(found.tensors)
    found = _with_classes(found, to, classes)
    if inference_only:
        try:
            tensors, lines = without_train_only(found.tensors, num_queries)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        found = found._replace(tensors=tensors)
        logger.info(f"left out: {', '.join(lines) or 'nothing, all is needed for inference'}")
    try:
        tensors = PROJECTS[to].from_here(found.tensors, found.refines)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if model_type := PROJECTS[to].model_type:
        _save_folder(found, tensors, source_of(found), output, model_type)
    else:
        _save_file(found, tensors, source_of(found), output)
    logger.info(f"classes: {before} -> {num_class_rows(found.tensors)}")
    logger.info(f"saved to {output}, {PROJECTS[to].name}")


def _with_classes(found: Examined, to: str, classes: str) -> Examined:
    """The same with the class rows that are asked for."""
    coco_rows = PROJECTS[to].coco_rows
    are_cocos = found.names is not None and are_coco_classes(found.names)
    if classes == "same" or not classes and (not are_cocos or len(found.names) == coco_rows):
        return found
    names = _read_names(classes) if classes else coco_class_names(coco_rows)
    if found.names is None:
        raise InputError(f"{found.path} does not name its classes: none can be chosen by name")
    rows = rows_by_name(found.names, names)
    if missing := [name for name, row in zip(names, rows) if name and row is None]:
        raise InputError(
            f"{found.path} has no class {', '.join(missing[:5])}, only "
            f"{', '.join(filter(None, found.names))}; to train new classes from its weights, set "
            "MODEL.WEIGHTS to it as it is"
        )
    if rows == list(range(num_class_rows(found.tensors))):
        return found
    return found._replace(tensors=take_class_rows(found.tensors, rows), names=names)


def _read_names(path: str) -> list[str]:
    """A json of names, or one in COCO's format."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no json of class names ({error})") from error
    try:
        if isinstance(content, dict):
            categories = sorted(content["categories"], key=lambda category: category["id"])
            content = [category["name"] for category in categories]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: has no categories with id and name") from error
    if not (isinstance(content, list) and content and all(isinstance(x, str) for x in content)):
        raise InputError(f"{path}: must be a list of class names, or a json in COCO's format")
    if len(set(content)) < len(content):
        raise InputError(f"{path}: has a class name twice")
    return content


def _save_file(found: Examined, tensors: StateDict, source: dict[str, Any], output: str) -> None:
    entries = {
        "model": tensors,
        REFINES: found.refines,
        DILATED: found.dilated,
        # Of 91 rows, some have no class.
        CLASS_NAMES: found.names if found.names and all(found.names) else None,
        LICENCE: found.licence,
        SOURCE: source,
    }
    save_atomically({k: v for k, v in entries.items() if v is not None}, output)


def _save_folder(
    found: Examined, tensors: StateDict, source: dict[str, Any], output: str, model_type: str
) -> None:
    """For `from_pretrained`; complete or not there at all."""
    config = _config_json(found, model_type)
    metadata = {"format": "pt", SOURCE: json.dumps(source)}
    if found.licence:
        metadata[LICENCE] = found.licence
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(output))) as folder:
        made = os.path.join(folder, "made")
        os.mkdir(made)
        save_safetensors(tensors, os.path.join(made, WEIGHTS[0]), metadata)
        with open(os.path.join(made, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
        os.rename(made, output)


def _config_json(found: Examined, model_type: str) -> dict[str, Any]:
    """
    The weights tell the product of heads and points alone: 4 points, as all five models have. Of
    DETR they do not tell heads at all: of 32 channels, as all its models have.

    Raises:
        InputError: where the file does not say whether its only level is that of DC5.
    """
    key = {k.rpartition(".")[2]: v for k, v in config_values(found.tensors).items()}
    levels = key["NUM_FEATURE_LEVELS"]
    if found.dilated is None and levels == 1:
        raise InputError(
            f"{found.path} does not say whether its last stage is dilated, which config.json must: "
            "give --dc5 or --no-dc5"
        )
    if not has_usual_resnet(found.tensors):
        raise InputError(
            f"{found.path}: its backbone is no ResNet of timm's widths, so config.json cannot name "
            "it"
        )
    if is_dense(found.tensors):
        heads, switches = key["HIDDEN_DIM"] // 32, {}
    else:
        layer = "head.transformer.encoder.layers.0."
        heads = len(found.tensors[f"{layer}self_attn.attention_weights.bias"]) // (4 * levels)
        switches = {
            "two_stage": is_two_stage(found.tensors),
            "with_box_refine": found.refines,
            "num_feature_levels": levels,
        }
    feedforward = found.tensors["head.transformer.decoder.layers.0.linear1.bias"]
    rows = num_class_rows(found.tensors)
    return config_of(
        model_type=model_type,
        rows=found.names or [f"LABEL_{row}" for row in range(rows)],
        dilated=bool(found.dilated),
        backbone=f"resnet{key['DEPTH']}",
        num_queries=key.get("NUM_QUERIES", 300),
        d_model=key["HIDDEN_DIM"],
        encoder_layers=key["ENC_LAYERS"],
        decoder_layers=key["DEC_LAYERS"],
        encoder_ffn_dim=key["DIM_FEEDFORWARD"],
        decoder_ffn_dim=len(feedforward),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        **switches,
    )
