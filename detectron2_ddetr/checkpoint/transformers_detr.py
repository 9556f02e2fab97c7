"""State dicts of `detr` in Hugging Face transformers <-> those of this package."""

import re

from .official import HEAD_OF_LAYER
from .project import Project, StateDict
from .renaming import Renaming, behind
from .transformers import BOTH_LAYERS, ENCODER_LAYER, RESNET_TABLE, as_in_files, separated

_DECODER_LAYER = [
    ("encoder_attn.", "multihead_attn."),
    ("self_attn_layer_norm.", "norm1."),
    ("encoder_attn_layer_norm.", "norm2."),
    ("final_layer_norm.", "norm3."),
]
_TRANSFORMER_TABLE = [
    *behind("encoder.layers.*.", "encoder.layers.*.", ENCODER_LAYER + BOTH_LAYERS),
    *behind("decoder.layers.*.", "decoder.layers.*.", _DECODER_LAYER + BOTH_LAYERS),
    ("decoder.layernorm.", "decoder.norm."),
]
_TABLE = [
    *RESNET_TABLE,
    ("class_embed.", "head.class_embed."),
    ("bbox_embed.", "head.bbox_embed."),
    ("model.input_projection.", "head.input_proj."),
    ("model.query_position_embeddings.", "head.query_embed."),
    *behind("model.", "head.transformer.", _TRANSFORMER_TABLE),
]
_HEADS = {"class_labels_classifier": "class_embed", "bbox_predictor": "bbox_embed"}
_THERE = {ours: theirs for theirs, ours in _HEADS.items()}
_SHARED_HEAD = re.compile(rf"^({'|'.join(_HEADS)})\.")


def _prepare(state_dict: StateDict) -> StateDict:
    """Also the heads, which all layers share, as those of the first."""
    return {
        _SHARED_HEAD.sub(lambda m: f"{_HEADS[m[1]]}.0.", key): value
        for key, value in as_in_files(state_dict).items()
    }


def _complete(state_dict: StateDict) -> StateDict:
    return {
        HEAD_OF_LAYER.sub(lambda m: f"{_THERE[m[1]]}.", key): value
        for key, value in separated(state_dict).items()
    }


TRANSFORMERS_DETR = Project(
    key="transformers-detr",
    name="a checkpoint of DETR in Hugging Face transformers",
    names=Renaming(_TABLE),
    mark="model.decoder.layers.0.encoder_attn.k_proj.weight",
    decoder="",
    prepare=_prepare,
    complete=_complete,
    coco_rows=91,
    model_type="detr",
)
