"""
State dicts of the official code -> state dicts of this package.

``ddetr convert official.pth converted.pth`` turns a published checkpoint into one that
``MODEL.WEIGHTS`` accepts.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..errors import InputError
from ..modeling.two_stage import OBJECTNESS_CHANNEL
from .class_names import CLASS_NAMES
from .coco_classes import COCO_CLASSES
from .family import LABEL_BOOK, head_name, proposes_objects
from .files import REFINES, load_checkpoint_file, model_state_dict, save_atomically
from .torchvision import torchvision_to_detectron2

logger = logging.getLogger(__name__)

#: What weights of the official code are called.
OFFICIAL = "a checkpoint of the official code"

#: COCO's ids of its 80 detection classes, in the order of the contiguous class indices.
COCO_CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]

# Copies that the official modules register a second time under the decoder.
_TIED = re.compile(r"^transformer\.decoder\.((?:bbox|class)_embed\..*)$")
# Left behind by the FLOP counter that the authors ran on their models.
_LEFTOVER = re.compile(r"(^|\.)total_(params|ops)$")
# Tensors with a row for each class.
_CLASS_HEAD = re.compile(rf"^(?:head\.class_embed\.(\d+)\.(?:weight|bias)|{LABEL_BOOK})$")


def plan_conversion(keys: Iterable[str]) -> list[tuple[str, str | None, str]]:
    """
    What becomes of each key of an official state dict.

    Returns:
        (official key, our key or None, what it is) in the order of `keys`.

    Raises:
        InputError: naming keys that are not of Deformable DETR.
    """
    keys = list(keys)
    plan, unknown, num_layers = [], [], _num_decoder_layers(keys)
    for key in keys:
        if _LEFTOVER.search(key):
            plan.append((key, None, "leftover of a FLOP counter, dropped"))
        elif tied := _TIED.match(key):
            plan.append((key, None, f"copy of {tied[1].split('.')[0]}, equal, dropped"))
        elif key.startswith("backbone.0.body."):
            name = torchvision_to_detectron2(key.removeprefix("backbone.0.body."))
            what = "backbone" if name else "counter of a BatchNorm, dropped"
            plan.append((key, name and f"backbone.{name}", what))
        elif name := head_name(key, num_layers):
            plan.append((key, f"head.{name}", name.split(".")[0]))
        else:
            unknown.append(key)
    if unknown or not any(name for _, name, _ in plan):
        raise InputError(
            "not a state dict of the official Deformable DETR or of one of its relatives; "
            f"{len(unknown)} unknown keys: {unknown[:5]}"
        )
    return plan


def convert_official_state_dict(
    state_dict: dict[str, Tensor], *, class_ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """
    Official weights -> weights of :class:`DeformableDETR`, for all five variants; those of
    H-Deformable-DETR, DAB- and DN-Deformable-DETR and DINO by their authors likewise.

    Args:
        state_dict: the entry "model" of an official checkpoint.
        class_ids: the rows of the class heads to keep, in the order of the classes here; for
            COCO :data:`COCO_CATEGORY_IDS`. None keeps all 91. The head of a two-stage encoder
            keeps its objectness row first whatever is chosen, unless it tells classes (DINO). A
            label book follows, and keeps its last row, which is of no class.

    Raises:
        InputError: for what is no dict of tensors, unknown keys, copies of a tensor that differ, or
            `class_ids` that are not different rows.
    """
    if not isinstance(state_dict, Mapping) or not all(map(torch.is_tensor, state_dict.values())):
        raise InputError(
            "a state dict must be tensors by their names, such as the entry 'model' of an official "
            f"checkpoint, got {type(state_dict)}"
        )
    if class_ids is not None:
        class_ids = _checked_rows(class_ids)
    _check_copies(state_dict)
    converted = {}
    num_decoder_layers = _num_decoder_layers(state_dict)
    agnostic = proposes_objects(state_dict)
    for key, name, _ in plan_conversion(state_dict):
        if name is None:
            continue
        tensor = state_dict[key]
        if class_ids is not None and (head := _CLASS_HEAD.match(name)):
            rows = class_ids
            if agnostic and head[1] == str(num_decoder_layers):  # the encoder's
                # Its other rows were trained as pure background; any will do.
                rows = [OBJECTNESS_CHANNEL] + [r for r in rows if r != OBJECTNESS_CHANNEL]
                rows = rows[: len(class_ids)]
            if name == LABEL_BOOK:
                rows = [*rows, len(tensor) - 1]  # the last is of no class
            if max(rows) >= len(tensor):
                raise InputError(
                    f"{key} has {len(tensor)} classes, but row {max(rows)} is asked for: choose "
                    "other class_ids, or keep all rows (--keep-91-classes)"
                )
            tensor = tensor[rows]
        converted[name] = tensor
    return converted


def official_class_names(family: str, converted: dict[str, Tensor]) -> list[str] | None:
    """
    The names of COCO's classes by row; "" for rows that no class has.

    Args:
        family: of the weights, as :func:`read_state_dict` calls it.
        converted: under the names here. With 91 rows, the row of a class is its category id; with
            80, they are the classes in the order of their ids.

    Returns:
        None for weights of others, and of another number of classes.
    """
    rows = converted.get("head.class_embed.0.bias")
    if family != OFFICIAL or rows is None:
        return None
    if len(rows) == len(COCO_CLASSES):
        return list(COCO_CLASSES)
    if len(rows) != 91:
        return None
    names = dict(zip(COCO_CATEGORY_IDS, COCO_CLASSES))
    return [names.get(row, "") for row in range(91)]


def _checked_rows(class_ids: Sequence[int]) -> list[int]:
    """`class_ids` as a list of ints, none negative, none twice."""
    try:
        rows = list(class_ids)
    except TypeError:
        raise InputError(f"class_ids must be a list of row numbers, got {class_ids!r}") from None
    if not rows:
        raise InputError("class_ids is empty: a model needs at least one class; None keeps all")
    wrong = [i for i in rows if isinstance(i, bool) or not isinstance(i, Integral) or i < 0]
    if wrong:
        raise InputError(
            f"class_ids must be row numbers of the class heads, whole and from 0, got {wrong[0]!r}"
        )
    if twice := [i for i, count in Counter(rows).items() if count > 1]:
        raise InputError(
            f"class_ids has {twice[0]} more than once; each class needs a row of its own"
        )
    return [int(i) for i in rows]


def has_refining_heads(state_dict: dict[str, Tensor]) -> bool:
    """Whether an official model refines boxes: only then has its decoder heads of its own."""
    return any(map(_TIED.match, state_dict))


def _num_decoder_layers(keys: Iterable[str]) -> int:
    layers = re.compile(r"^transformer\.decoder\.layers\.(\d+)\.")
    return 1 + max((int(m[1]) for m in map(layers.match, keys) if m), default=-1)


def _check_copies(state_dict: dict[str, Tensor]) -> None:
    """Copies under the decoder must equal their owner, or it is unclear which one is meant."""
    for key in state_dict:
        tied = _TIED.match(key)
        if not tied:
            continue
        if tied[1] not in state_dict:
            raise InputError(f"{key} is a copy of {tied[1]}, which is missing")
        if not torch.equal(state_dict[key], state_dict[tied[1]]):
            raise InputError(f"{key} and {tied[1]} are one tensor officially, but differ here")


def conversion_report(state_dict: dict[str, Tensor], converted: dict[str, Tensor]) -> str:
    """What was mapped and what was dropped, as a few lines of text."""
    counts = Counter(what for _, _, what in plan_conversion(state_dict))
    two_stage = "transformer.enc_output.weight" in state_dict
    refine = has_refining_heads(state_dict)
    levels = len(state_dict["transformer.level_embed"])
    variant = (
        "two-stage" if two_stage else "box refinement" if refine else "one-stage, no refinement"
    )
    rows = [
        f"variant: {variant}, {levels} feature level(s), {_num_decoder_layers(state_dict)} layers"
    ]
    rows += [f"{count:5d} tensors: {what}" for what, count in sorted(counts.items())]
    before, after = (
        len(d[k])
        for d, k in ((state_dict, "class_embed.0.bias"), (converted, "head.class_embed.0.bias"))
    )
    rows.append(f"classes: {before} -> {after}" + (", objectness row kept" if two_stage else ""))
    rows.append(f"{len(converted):5d} tensors written")
    return "\n".join(rows)


def convert_file(official: str, converted: str, *, keep_91_classes: bool = False) -> None:
    """
    Converts a `.pth` file of the authors' releases and logs what became of its tensors.

    Args:
        official, converted: paths of the file to read and of the one to write.
        keep_91_classes: keep the rows of the class heads as they are, indexed by COCO category id,
            instead of the 80 of :data:`COCO_CATEGORY_IDS`.
    """
    state_dict = model_state_dict(load_checkpoint_file(official), official)
    class_ids = None if keep_91_classes else COCO_CATEGORY_IDS
    weights = convert_official_state_dict(state_dict, class_ids=class_ids)
    data = {"model": weights, REFINES: has_refining_heads(state_dict)}
    if not keep_91_classes:
        data[CLASS_NAMES] = list(COCO_CLASSES)
    save_atomically(data, converted)
    logger.info(conversion_report(state_dict, weights))
    logger.info(f"saved to {converted}")
