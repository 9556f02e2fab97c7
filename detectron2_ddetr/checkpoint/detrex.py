"""
State dicts of detrex <-> those of this package: of its projects deformable_detr, h_deformable_detr,
dab_deformable_detr, dn_deformable_detr and dino.
"""

import re

import torch.nn.functional as F

from .project import Project, StateDict
from .renaming import Renaming, behind

_ENCODER, _DECODER = "transformer.encoder.layers.*.", "transformer.decoder.layers.*."
_FEEDFORWARD = [("ffns.0.layers.0.0.", "linear1."), ("ffns.0.layers.1.", "linear2.")]
_ENCODER_LAYER = [("attentions.0.", "self_attn."), ("norms.0.", "norm1."), ("norms.1.", "norm2.")]
_DECODER_LAYER = [
    ("attentions.0.attn.", "self_attn."),
    ("attentions.1.", "cross_attn."),
    ("norms.0.", "norm2."),  # after the self-attention, which comes first
    ("norms.1.", "norm1."),
    ("norms.2.", "norm3."),
]
_SAME = ("reference_points.", "enc_output.", "enc_output_norm.", "pos_trans.", "pos_trans_norm.")
_SAME += ("decoder.query_scale.", "decoder.ref_point_head.", "decoder.norm.")
#: What the content of the queries is called, in all projects but those of anchors, in those, and in
#: that of DINO.
_QUERIES, _OF_ANCHORS, _OF_DINO = "query_embedding.", "tgt_embed.", "transformer.tgt_embed."
#: DN-Deformable-DETR's label embedding, as detrex trains it and as it converts it; DINO's.
_LABELS, _CONVERTED_LABELS = "denoising_generator.label_encoder.", "label_encoder."
_LABELS_OF_DINO = "label_enc."
_TABLE = [
    ("backbone.", "backbone."),
    ("neck.convs.*.conv.", "head.input_proj.*.0."),
    ("neck.convs.*.norm.", "head.input_proj.*.1."),
    # Of several names for one tensor here, the first is the one that is written.
    *((name, "head.query_embed.") for name in (_QUERIES, _OF_ANCHORS, _OF_DINO)),
    ("refpoint_embed.", "head.transformer.refpoint_embed."),
    *(
        (name, "head.denoising.label_enc.")
        for name in (_LABELS, _CONVERTED_LABELS, _LABELS_OF_DINO)
    ),
    ("class_embed.", "head.class_embed."),
    ("bbox_embed.", "head.bbox_embed."),
    ("transformer.level_embeds", "head.transformer.level_embed"),
    *behind("transformer.", "head.transformer.", [(name, name) for name in _SAME]),
    *behind(_ENCODER, f"head.{_ENCODER}", _ENCODER_LAYER + _FEEDFORWARD),
    *behind(_DECODER, f"head.{_DECODER}", _DECODER_LAYER + _FEEDFORWARD),
]
_EXTRA = re.compile(r"^neck\.extra_convs\.(\d+)\.")
_LEVEL = re.compile(r"^neck\.convs\.(\d+)\.")


def _prepare(state_dict: StateDict) -> StateDict:
    """
    Extra levels are counted on from those of the backbone; DINO's label embedding gets the last
    row, which no query has.
    """
    count = len({m[1] for m in map(_LEVEL.match, state_dict) if m})
    prepared = {
        _EXTRA.sub(lambda m: f"neck.convs.{count + int(m[1])}.", key): value
        for key, value in state_dict.items()
    }
    book = f"{_LABELS_OF_DINO}weight"
    if book in prepared and prepared[book].dim() == 2:
        prepared[book] = F.pad(prepared[book], (0, 0, 0, 1))
    return prepared


def _complete(state_dict: StateDict) -> StateDict:
    """
    Extra levels have the kernels that are not of 1x1. DINO and the projects of anchors have other
    names.
    """
    of_queries = _QUERIES
    if "refpoint_embed.weight" in state_dict:
        of_queries = _OF_ANCHORS
    elif "transformer.decoder.norm.weight" in state_dict:
        of_queries = _OF_DINO
    extra = sorted(
        int(_LEVEL.match(key)[1])
        for key, value in state_dict.items()
        if _LEVEL.match(key) and key.endswith(".conv.weight") and value.shape[-1] > 1
    )
    completed = {}
    for key, value in state_dict.items():
        key = _LEVEL.sub(
            lambda m: f"neck.extra_convs.{extra.index(int(m[1]))}." if int(m[1]) in extra else m[0],
            key,
        )
        if key.startswith(_QUERIES):
            key = of_queries + key.removeprefix(_QUERIES)
        if key.startswith(_LABELS) and of_queries == _OF_DINO:
            key, value = _LABELS_OF_DINO + key.removeprefix(_LABELS), value[:-1]
        completed[key] = value
    return completed


DETREX = Project(
    key="detrex",
    name="a checkpoint of detrex",
    names=Renaming(_TABLE),
    mark="transformer.level_embeds",
    decoder="transformer.decoder.",
    prepare=_prepare,
    complete=_complete,
    anchors=None,
    mixed_selection=True,
    caveat="detrex keeps boxes 0.001 away from the borders of the image between its layers; in "
    "Deformable DETR and H-Deformable-DETR, the authors and this package 0.00001. Its DINO has "
    "heads of its own for each decoder layer and encodes positions as Deformable DETR does: its "
    "MODEL.META_ARCHITECTURE is DetrexDINO",
)
