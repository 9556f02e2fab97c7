"""State dicts of the official code <-> those of this package."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..errors import InputError
from .class_rows import take_class_rows
from .project import Project, StateDict, layers_differ
from .renaming import Renaming, behind
from .torchvision import TORCHVISION_TABLE

_SAME = [
    (name, f"head.{name}")
    for name in ("transformer.", "class_embed.", "bbox_embed.", "query_embed.", "input_proj.")
] + behind("backbone.0.body.", "backbone.", TORCHVISION_TABLE)
_LABEL_ENC = ("label_enc.", "head.denoising.label_enc.")
_SHARED_HEAD = re.compile(r"^(class_embed|bbox_embed)\.")
HEAD_OF_LAYER = re.compile(r"^(class_embed|bbox_embed)\.\d+\.")
_DECODER_LAYER = re.compile(r"^transformer\.decoder\.layers\.(\d+)\.")

OFFICIAL = Project(
    key="official",
    name="a checkpoint of the official code",
    names=Renaming(_SAME),
    mark="transformer.level_embed",
    decoder="transformer.decoder.",
    coco_rows=91,
    mixed_selection=True,
)

#: DAB- and DN-Deformable-DETR.
ANCHORS = Project(
    key="dab",
    name="a checkpoint of the official DAB- or DN-Deformable-DETR",
    names=Renaming(
        [
            *(row for row in _SAME if row[0] != "query_embed."),
            ("tgt_embed.", "head.query_embed."),
            ("refpoint_embed.", "head.transformer.refpoint_embed."),
            _LABEL_ENC,
        ]
    ),
    mark="refpoint_embed.weight",
    decoder="transformer.decoder.",
    coco_rows=91,
    anchors=True,
)


def _encoder_head(state_dict: StateDict) -> tuple[str, str]:
    """How the heads of DINO's encoder are called there, and after those of the decoder here."""
    layers = {m[1] for m in map(_DECODER_LAYER.match, state_dict) if m}
    return r"^transformer\.enc_out_(class_embed|bbox_embed)\.", rf"\1.{len(layers)}."


def _prepare_dino(state_dict: StateDict) -> StateDict:
    there, here = _encoder_head(state_dict)
    return {re.sub(there, here, key): value for key, value in state_dict.items()}


def _complete_dino(state_dict: StateDict) -> StateDict:
    if layers_differ(state_dict):
        raise InputError(
            "the official DINO has one class head and one box head for all decoder layers, but "
            "these weights, such as those of detrex, have others for each"
        )
    last = _encoder_head(state_dict)[1].removeprefix(r"\1")
    completed = {}
    for key, value in state_dict.items():
        kind, is_encoder, rest = key.removeprefix("transformer.decoder.").partition(last)
        if is_encoder and kind in ("class_embed", "bbox_embed"):
            key = f"transformer.enc_out_{kind}.{rest}"
        completed[key] = value
    return completed


DINO = Project(
    key="dino",
    name="a checkpoint of the official DINO",
    names=Renaming(
        [
            *(row for row in _SAME if row[0] != "query_embed."),
            ("transformer.tgt_embed.", "head.query_embed."),
            _LABEL_ENC,
        ]
    ),
    mark="transformer.enc_out_class_embed.weight",
    decoder="transformer.decoder.",
    prepare=_prepare_dino,
    complete=_complete_dino,
    coco_rows=91,
    anchors=True,
    mixed_selection=True,
)


def _prepare_detr(state_dict: StateDict) -> StateDict:
    """The heads, which all layers share, as those of the first."""
    return {_SHARED_HEAD.sub(r"\1.0.", key): value for key, value in state_dict.items()}


def _complete_detr(state_dict: StateDict) -> StateDict:
    return {HEAD_OF_LAYER.sub(r"\1.", key): value for key, value in state_dict.items()}


DETR = Project(
    key="detr",
    name="a checkpoint of the official DETR",
    names=Renaming(_SAME),
    mark="transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    decoder="",
    prepare=_prepare_detr,
    complete=_complete_detr,
    coco_rows=91,
)

#: The codes of the authors; those whose mark all have stand last.
AUTHORS = (DETR, DINO, ANCHORS, OFFICIAL)


def convert_official_state_dict(
    state_dict: dict[str, Tensor], *, class_ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """
    Official weights -> weights of :class:`DeformableDETR`, for all five variants; likewise of
    H-Deformable-DETR, DAB- and DN-Deformable-DETR, DINO and DETR by their authors.

    Args:
        state_dict: the entry "model" of an official checkpoint.
        class_ids: the rows of the class heads to keep, in the order of the classes here; for
            COCO `COCO_CATEGORY_IDS`. None keeps all 91, and the one of no object is kept in any
            case. See :func:`take_class_rows`.

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
    project = next((author for author in AUTHORS if author.recognises(state_dict)), OFFICIAL)
    converted = project.to_here(state_dict)
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
