"""State dicts of the official code <-> those of this package."""

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..errors import InputError
from .class_rows import take_class_rows
from .project import Project
from .renaming import Renaming, behind
from .torchvision import TORCHVISION_TABLE

_SAME = ("transformer.", "class_embed.", "bbox_embed.", "query_embed.", "input_proj.")

OFFICIAL = Project(
    key="official",
    name="a checkpoint of the official code",
    names=Renaming(
        behind("backbone.0.body.", "backbone.", TORCHVISION_TABLE)
        + [(name, f"head.{name}") for name in _SAME]
    ),
    mark="transformer.level_embed",
    decoder="transformer.decoder.",
    coco_rows=91,
)


def convert_official_state_dict(
    state_dict: dict[str, Tensor], *, class_ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """
    Official weights -> weights of :class:`DeformableDETR`, for all five variants.

    Args:
        state_dict: the entry "model" of an official checkpoint.
        class_ids: the rows of the class heads to keep, in the order of the classes here; for
            COCO `COCO_CATEGORY_IDS`. None keeps all 91. The head of a two-stage encoder keeps its
            objectness row first whatever is chosen.

    Raises:
        InputError: for what is no dict of tensors, unknown keys, copies of a tensor that differ, or
            `class_ids` that are not different rows.
    """
    if not isinstance(state_dict, Mapping) or not all(map(torch.is_tensor, state_dict.values())):
        raise InputError(
            "a state dict must be tensors by their names, such as the entry 'model' of an official "
            f"checkpoint, got {type(state_dict)}"
        )
    rows = None if class_ids is None else _checked_rows(class_ids)
    converted = OFFICIAL.to_here(state_dict)
    return converted if rows is None else take_class_rows(converted, rows)


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
