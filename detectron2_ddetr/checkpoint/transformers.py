"""State dicts of Hugging Face transformers <-> those of this package."""

import re

import torch

from .project import Project, StateDict
from .renaming import Renaming, behind
from .torchvision import TORCHVISION_TABLE

_BACKBONE = "model.backbone.conv_encoder.model."
_COPY = re.compile(r"^model\.decoder\.((?:class|bbox)_embed\.)")
_ATTENTION = r"^(model\.\w+\.layers\.\d+\.(?:self|encoder)_attn\.)"
_SPLIT = re.compile(_ATTENTION + r"([qkv])_proj\.(weight|bias)$")
_PACKED = re.compile(_ATTENTION + r"in_proj_(weight|bias)$")
#: Names inside a model of version 5, and in files of all versions, which it writes too.
_IN_MEMORY = (
    (re.compile(r"^model\.backbone\.model\."), _BACKBONE),
    (re.compile(r"(layers\.\d+\.)mlp\.(fc\d\.)"), r"\1\2"),
    (re.compile(r"_attn\.o_proj\."), "_attn.out_proj."),
)
_CONVOLUTION = [("convolution.", ""), ("normalization.", "norm.")]
#: How names begin in transformers' own ResNet and in detectron2's.
_OWN_RESNET = behind("embedder.embedder.", "stem.conv1.", _CONVOLUTION)
_BRANCHES = [("shortcut", "shortcut"), *((f"layer.{i}", f"conv{i + 1}") for i in range(3))]
for _stage in range(4):
    for _theirs, _ours in _BRANCHES:
        _OWN_RESNET += behind(
            f"encoder.stages.{_stage}.layers.*.{_theirs}.",
            f"res{_stage + 2}.*.{_ours}.",
            _CONVOLUTION,
        )
BOTH_LAYERS = [("self_attn.", "self_attn."), ("fc1.", "linear1."), ("fc2.", "linear2.")]
ENCODER_LAYER = [("self_attn_layer_norm.", "norm1."), ("final_layer_norm.", "norm2.")]
_DECODER_LAYER = [
    ("encoder_attn.", "cross_attn."),
    ("encoder_attn_layer_norm.", "norm1."),
    ("self_attn_layer_norm.", "norm2."),
    ("final_layer_norm.", "norm3."),
]
_SAME = ("level_embed", "reference_points.", "enc_output.", "enc_output_norm.")
_SAME += ("pos_trans.", "pos_trans_norm.")
_TRANSFORMER_TABLE = [
    *((name, name) for name in _SAME),
    *behind("encoder.layers.*.", "encoder.layers.*.", ENCODER_LAYER + BOTH_LAYERS),
    *behind("decoder.layers.*.", "decoder.layers.*.", _DECODER_LAYER + BOTH_LAYERS),
]
# Of two names for one tensor here, the first is the one that is written.
RESNET_TABLE = behind(_BACKBONE, "backbone.", TORCHVISION_TABLE + _OWN_RESNET)
_TABLE = [
    *RESNET_TABLE,
    ("class_embed.", "head.class_embed."),
    ("bbox_embed.", "head.bbox_embed."),
    ("model.input_proj.", "head.input_proj."),
    ("model.query_position_embeddings.", "head.query_embed."),
    *behind("model.", "head.transformer.", _TRANSFORMER_TABLE),
]


def as_in_files(state_dict: StateDict) -> StateDict:
    """
    Names as in files; queries, keys and values in one matrix; heads that a file has only under the
    decoder, since they are the same tensors, under their own names too.
    """
    prepared: StateDict = {}
    for key, value in state_dict.items():
        for pattern, new in _IN_MEMORY:
            key = pattern.sub(new, key)
        prepared[key] = value
    for key in list(prepared):
        prepared.setdefault(_COPY.sub(r"\1", key), prepared[key])
    for key in [key for key in prepared if _SPLIT.match(key)]:
        _, layer, _, kind, _ = _SPLIT.split(key)
        thirds = [f"{layer}{letter}_proj.{kind}" for letter in "qkv"]
        if all(third in prepared for third in thirds):
            packed = torch.cat([prepared.pop(third) for third in thirds])
            prepared[f"{layer}in_proj_{kind}"] = packed
    return prepared


def separated(state_dict: StateDict) -> StateDict:
    """Queries, keys and values in a matrix each."""
    completed: StateDict = {}
    for key, value in state_dict.items():
        if part := _PACKED.match(key):
            for letter, third in zip("qkv", value.chunk(3)):
                completed[f"{part[1]}{letter}_proj.{part[2]}"] = third.clone()
        else:
            completed[key] = value
    return completed


TRANSFORMERS = Project(
    key="transformers",
    name="a checkpoint of Hugging Face transformers",
    names=Renaming(_TABLE),
    mark="model.level_embed",
    decoder="model.decoder.",
    has_all_copies=False,
    prepare=as_in_files,
    complete=separated,
    coco_rows=91,
    model_type="deformable_detr",
)
