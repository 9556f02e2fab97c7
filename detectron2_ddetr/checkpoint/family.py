"""What the relatives of Deformable DETR call their weights, and what their class rows mean."""

import re
from collections.abc import Iterable

#: Denoising models embed the labels of their queries: a row for each class, and one of none.
LABEL_BOOK = "head.denoising.label_enc.weight"

#: Names of H-Deformable-DETR, DAB- and DN-Deformable-DETR and DINO that are others here.
_RENAMED = {
    "label_enc.weight": "denoising.label_enc.weight",
    "refpoint_embed.weight": "transformer.refpoint_embed.weight",
    "tgt_embed.weight": "query_embed.weight",
    "transformer.tgt_embed.weight": "query_embed.weight",
}
_ENCODER_HEAD = re.compile(r"^transformer\.enc_out_(class_embed|bbox_embed)\.(.*)$")
_HEAD = re.compile(r"^(transformer|class_embed|bbox_embed|query_embed|input_proj)\.")


def head_name(key: str, num_decoder_layers: int) -> str | None:
    """
    The name within the head here of an official tensor; None for what belongs to no head.

    Args:
        num_decoder_layers: of the model: the encoder's own heads follow those of the decoder.
    """
    if key in _RENAMED:
        return _RENAMED[key]
    if of_encoder := _ENCODER_HEAD.match(key):
        return f"{of_encoder[1]}.{num_decoder_layers}.{of_encoder[2]}"
    return key if _HEAD.match(key) else None


def proposes_objects(keys: Iterable[str]) -> bool:
    """Whether the class head of a proposing encoder tells objects, not classes, as in DINO."""
    return not any(map(_ENCODER_HEAD.match, keys))
