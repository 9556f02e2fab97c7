"""Says what a checkpoint is, and converts it between the projects that have Deformable DETR."""

import hashlib
import os
from collections import Counter
from typing import Any, NamedTuple

from ..errors import InputError
from .class_names import class_names_of
from .class_rows import num_class_rows
from .coco_classes import are_coco_classes
from .entries import LICENCE, REFINES, SOURCE, dilated_of
from .files import load_checkpoint_file, model_state_dict
from .head_shapes import check_head
from .hub import weights_of_folder
from .project import Project, StateDict, is_dense, layers_differ
from .projects import class_names_by_rows, recognised
from .reading import why_unreadable
from .shards import shards_of
from .sizes import config_values, has_indicator, has_usual_resnet
from .train_only import with_many_queries


class Examined(NamedTuple):
    """
    path: of the file of weights.
    tensors: under the names here.
    counts: how many tensors of the file became what, in words.
    names: of the classes by row, "" for a row that no class has; None if they are not known.
    dilated: whether the last stage is dilated (DC5); None if it is not known.
    source, licence: as the file says; None where it does not.
    """

    path: str
    project: Project
    tensors: StateDict
    counts: Counter[str]
    names: list[str] | None
    refines: bool
    dilated: bool | None
    source: dict[str, Any] | None
    licence: str | None


def examine(path: str) -> Examined:
    """
    Args:
        path: a file, or a folder of Hugging Face transformers.

    Raises:
        InputError: if it is damaged, no checkpoint of Deformable DETR, or one of which tensors are
            missing or have shapes that do not belong together.
    """
    path = weights_of_folder(path) or path
    checkpoint = load_checkpoint_file(path)
    state_dict = model_state_dict(checkpoint, path)
    project, found = recognised(state_dict)
    if project is None:
        raise InputError(f"{path}: {why_unreadable(state_dict)}")
    try:
        tensors = project.to_here(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    refines = checkpoint.get(REFINES)
    if not isinstance(refines, bool):
        refines = project.refines(found)
    check_head(tensors, refines, path)
    source, licence = checkpoint.get(SOURCE), checkpoint.get(LICENCE)
    return Examined(
        path=path,
        project=project,
        tensors=tensors,
        counts=Counter(what for _, _, what in project.plan(project.prepare(found))),
        names=class_names_of(checkpoint, path) or class_names_by_rows(project.name, tensors),
        refines=refines,
        dilated=dilated_of(checkpoint),
        source=source if isinstance(source, dict) else None,
        licence=licence if isinstance(licence, str) else None,
    )


def describe(found: Examined) -> str:
    """What a checkpoint is, which config it fits, and what became of its tensors."""
    numbers = sum(value.numel() for value in found.tensors.values())
    config, opts = fitting_config(found)
    if config.startswith(_OF_ONE_LEVEL) and found.dilated is None:
        config += " (or that of DC5: its tensors are the same, and the file does not say)"
    if not has_usual_resnet(found.tensors):
        config += " (with another backbone)"
    lines = [
        f"{found.path}: {found.project.name}",
        f"config: {config}" + "".join(f"\n        {key} {value}" for key, value in opts.items()),
        f"classes: {_classes(found)}",
        f"source: {_source(found.source)}",
        f"licence: {found.licence or 'not said in the file'}",
        *([f"note: {found.project.caveat}"] if found.project.caveat else []),
        *(f"{count:5d} tensors: {what}" for what, count in sorted(found.counts.items())),
        f"{len(found.tensors):5d} tensors, {numbers / 1e6:.1f} million numbers in this package",
    ]
    return "\n".join(lines)


#: How the names of the configs begin whose model may be dilated (DC5).
_OF_ONE_LEVEL = ("deformable_detr_R_50_single_scale_", "detr_")
#: The configs of relatives, and the values in which they differ from :data:`_DEFAULTS`.
_RELATIVES = {
    "dino_4scale_R_50_12ep.yaml": {"NUM_QUERIES": 900, "TWO_STAGE": True},
    "dab_deformable_detr_R_50_50ep.yaml": {"TWO_STAGE": False},
    "dn_deformable_detr_R_50_50ep.yaml": {"TWO_STAGE": False},
    # With the queries that only train.
    "h_deformable_detr_R_50_12ep.yaml": {"NUM_QUERIES": 1800, "TWO_STAGE": True},
    "deformable_detr_R_50_two_stage_tricks_12ep.yaml": {"TWO_STAGE": True},
    **dict.fromkeys(
        ("detr_R_50_500ep.yaml", "detr_R_50_dc5_500ep.yaml"),
        {
            "NUM_QUERIES": 100,
            "NUM_FEATURE_LEVELS": 1,
            "WITH_BOX_REFINE": False,
            "TWO_STAGE": False,
        },
    ),
}
#: The values of the shipped configs, but for what is in their names.
_DEFAULTS = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.DETR.NUM_CLASSES": 80,
    "MODEL.DETR.NUM_QUERIES": 300,
    "MODEL.DETR.ENC_LAYERS": 6,
    "MODEL.DETR.DEC_LAYERS": 6,
    "MODEL.DETR.HIDDEN_DIM": 256,
    "MODEL.DETR.DIM_FEEDFORWARD": 1024,
}


def fitting_config(found: Examined) -> tuple[str, dict[str, int | bool | str]]:
    """The shipped config whose model is nearest, and the keys that have another value there."""
    values = config_values(found.tensors)
    two_stage, levels = (f"MODEL.DETR.{key}" for key in ("TWO_STAGE", "NUM_FEATURE_LEVELS"))
    values["MODEL.DETR.WITH_BOX_REFINE"] = found.refines
    if relative := _relative(found, values):
        own = {"DIM_FEEDFORWARD": 2048, "NUM_FEATURE_LEVELS": 4, "WITH_BOX_REFINE": True}
        own |= _RELATIVES[relative]
        expected = _DEFAULTS | {f"MODEL.DETR.{key}": value for key, value in own.items()}
        if relative.startswith("dino_") and layers_differ(found.tensors):
            values["MODEL.META_ARCHITECTURE"] = "DetrexDINO"
            expected["MODEL.META_ARCHITECTURE"] = "DINO"
        return relative, {k: value for k, value in values.items() if value != expected[k]}
    if values[levels] == 1:
        name = "single_scale_dc5_" if found.dilated else "single_scale_"
    else:
        name = "two_stage_" if values[two_stage] else "box_refine_" if found.refines else ""
    expected = {
        **_DEFAULTS,
        levels: 1 if "single_scale" in name else 4,
        two_stage: name == "two_stage_",
        "MODEL.DETR.WITH_BOX_REFINE": name in ("two_stage_", "box_refine_"),
    }
    differ = {key: value for key, value in values.items() if value != expected[key]}
    return f"deformable_detr_R_50_{name}50ep.yaml", differ


def _relative(found: Examined, values: dict[str, int | bool]) -> str:
    """The config of a relative of Deformable DETR; "" if it is none."""
    tensors = found.tensors
    if is_dense(tensors):
        kind = "detr_R_50_dc5_" if found.dilated else "detr_"
    elif "head.transformer.refpoint_embed.weight" in tensors:
        kind = "dn_" if has_indicator(tensors) else "dab_"
    elif not values["MODEL.DETR.TWO_STAGE"] or "head.query_embed.weight" not in tensors:
        return ""
    elif "head.transformer.pos_trans.weight" not in tensors:
        kind = "dino_"
    else:
        kind = "h_" if with_many_queries(tensors) else "deformable_"
    return next(name for name in _RELATIVES if name.startswith(kind))


def _classes(found: Examined) -> str:
    rows = num_class_rows(found.tensors)
    if found.names is None:
        return f"{rows} rows, which the file does not name"
    if are_coco_classes(found.names):
        return f"{rows} rows, COCO's " + ("by category id" if rows == 91 else "80 in their order")
    named = [name for name in found.names if name]
    return f"{rows} rows: " + ", ".join(named[:10]) + (", ..." if len(named) > 10 else "")


def _source(source: dict[str, Any] | None) -> str:
    if source is None:
        return "not said in the file"
    return ", ".join(f"{key} {value}" for key, value in source.items() if key != SOURCE)


def source_of(found: Examined) -> dict[str, Any]:
    """
    What a file that is made of this one says of it; of a converted one, also of its source. Of an
    index, the SHA-256 is that of its files, one after another by name.
    """
    digest = hashlib.sha256()
    for path in shards_of(found.path):
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    source = {
        "project": found.project.name,
        "file": os.path.basename(found.path),
        "sha256": digest.hexdigest(),
    }
    return source | ({SOURCE: found.source} if found.source else {})
