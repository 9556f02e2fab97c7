"""State dicts of detrex's projects/deformable_detr <-> those of this package."""

import re

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
_TABLE = [
    ("backbone.", "backbone."),
    ("neck.convs.*.conv.", "head.input_proj.*.0."),
    ("neck.convs.*.norm.", "head.input_proj.*.1."),
    ("query_embedding.", "head.query_embed."),
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
    """Extra levels are counted on from those of the backbone."""
    count = len({m[1] for m in map(_LEVEL.match, state_dict) if m})
    return {
        _EXTRA.sub(lambda m: f"neck.convs.{count + int(m[1])}.", key): value
        for key, value in state_dict.items()
    }


def _complete(state_dict: StateDict) -> StateDict:
    """Extra levels have the kernels that are not of 1x1."""
    extra = sorted(
        int(_LEVEL.match(key)[1])
        for key, value in state_dict.items()
        if _LEVEL.match(key) and key.endswith(".conv.weight") and value.shape[-1] > 1
    )
    return {
        _LEVEL.sub(
            lambda m: f"neck.extra_convs.{extra.index(int(m[1]))}." if int(m[1]) in extra else m[0],
            key,
        ): value
        for key, value in state_dict.items()
    }


DETREX = Project(
    key="detrex",
    name="a checkpoint of detrex",
    names=Renaming(_TABLE),
    mark="transformer.level_embeds",
    decoder="transformer.decoder.",
    prepare=_prepare,
    complete=_complete,
    caveat="detrex keeps boxes 0.001 away from the borders of the image between its layers, the "
    "authors and this package 0.00001",
)
