"""State dicts of Hugging Face transformers <-> those of this package."""

import re

import torch

from .project import Project, StateDict
from .renaming import Renaming
from .torchvision import TORCHVISION_NAMES

_BACKBONE = "model.backbone.conv_encoder.model."
_ENCODER, _DECODER = "encoder.layers.*.", "decoder.layers.*."
_COPY = re.compile(r"^model\.decoder\.((?:class|bbox)_embed\.)")
_SPLIT = re.compile(r"^(model\.decoder\.layers\.\d+\.self_attn\.)([qkv])_proj\.(weight|bias)$")
_PACKED = re.compile(r"^(model\.decoder\.layers\.\d+\.self_attn\.)in_proj_(weight|bias)$")
#: Names inside a model of version 5, and in files of all versions, which it writes too.
_IN_MEMORY = (
    (re.compile(r"^model\.backbone\.model\."), _BACKBONE),
    (re.compile(r"(layers\.\d+\.)mlp\.(fc\d\.)"), r"\1\2"),
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
)
#: Names in transformers' own ResNet and in detectron2's.
_RESNET = [
    ("embedder.embedder.convolution.", "stem.conv1."),
    ("embedder.embedder.normalization.", "stem.conv1.norm."),
] + [
    (f"encoder.stages.{stage}.layers.*.{theirs}.{part}.", f"res{stage + 2}.*.{ours}.{norm}")
    for stage in range(4)
    for theirs, ours in (
        ("shortcut", "shortcut"),
        *((f"layer.{i}", f"conv{i + 1}") for i in range(3)),
    )
    for part, norm in (("convolution", ""), ("normalization", "norm."))
]


def _prepare(state_dict: StateDict) -> StateDict:
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


def _complete(state_dict: StateDict) -> StateDict:
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
    names=Renaming(
        # The first of two names for one tensor here is the one that is written.
        TORCHVISION_NAMES.inside(_BACKBONE, "backbone.")
        + [(f"{_BACKBONE}{theirs}", f"backbone.{ours}") for theirs, ours in _RESNET]
        + [
            ("class_embed.", "head.class_embed."),
            ("bbox_embed.", "head.bbox_embed."),
            ("model.input_proj.", "head.input_proj."),
            ("model.query_position_embeddings.", "head.query_embed."),
        ]
        + [
            (f"model.{name}", f"head.transformer.{name}")
            for name in (
                "level_embed",
                "reference_points.",
                "enc_output.",
                "enc_output_norm.",
                "pos_trans.",
                "pos_trans_norm.",
            )
        ]
        + [
            (f"model.{layer}{theirs}", f"head.transformer.{layer}{ours}")
            for layer, parts in (
                (
                    _ENCODER,
                    (("self_attn_layer_norm.", "norm1."), ("final_layer_norm.", "norm2.")),
                ),
                (
                    _DECODER,
                    (
                        ("encoder_attn.", "cross_attn."),
                        ("encoder_attn_layer_norm.", "norm1."),
                        ("self_attn_layer_norm.", "norm2."),
                        ("final_layer_norm.", "norm3."),
                    ),
                ),
            )
            for theirs, ours in (
                *parts,
                ("self_attn.", "self_attn."),
                ("fc1.", "linear1."),
                ("fc2.", "linear2."),
            )
        ]
    ),
    mark="model.level_embed",
    decoder="model.decoder.",
    has_all_copies=False,
    prepare=_prepare,
    complete=_complete,
    coco_rows=91,
)
