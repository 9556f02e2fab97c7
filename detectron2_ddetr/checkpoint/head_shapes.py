"""Whether the weights of a head are complete, and of the shapes that belong together."""

import torch
from torch import nn

from ..errors import InputError
from ..modeling import (
    AnchorTransformer,
    DeformableDETRHead,
    DeformableTransformer,
    Denoising,
    DenseTransformer,
    DETRHead,
    DINOTransformer,
    FeatureProjector,
    PlainProjector,
    TwoStageDeformableTransformer,
)
from .class_rows import LABEL_BOOK
from .fit import check_state_dict
from .project import StateDict, is_dense, is_two_stage
from .sizes import config_values, has_indicator

_ATTENTION = "head.transformer.{}.attention_weights.bias"


def check_head(state_dict: StateDict, refines: bool, path: str) -> None:
    """
    Args:
        state_dict: under the names here.
        refines: whether each decoder layer has heads of its own.

    Raises:
        InputError: naming tensors that are missing, that no head of these sizes has, or of another
            shape, and numbers that are not finite.
    """
    own = {key: value for key, value in state_dict.items() if key.startswith("head.")}
    try:
        with torch.device("meta"):
            head = _head_of(own, refines)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{path}: its head has no sizes of Deformable DETR ({error})") from error
    expected = {f"head.{key}": value for key, value in head.state_dict().items()}
    if LABEL_BOOK not in own:
        expected.pop(LABEL_BOOK, None)  # of a checkpoint for inference
    check_state_dict(own, expected, path, part="head.")


def _head_of(state_dict: StateDict, refines: bool) -> nn.Module:
    """A head of the sizes of the first tensors of their kind."""
    values = config_values(state_dict)
    size = {key.removeprefix("MODEL.DETR."): value for key, value in values.items()}
    if is_dense(state_dict):
        return _detr_head_of(state_dict, size)
    levels = size["NUM_FEATURE_LEVELS"]
    first = [state_dict[f"head.input_proj.{level}.0.weight"] for level in range(levels)]
    # Shapes depend on the product of heads and points alone.
    samples = {
        part: len(state_dict[_ATTENTION.format(f"{part}.layers.0.{attention}")])
        for part, attention in (("encoder", "self_attn"), ("decoder", "cross_attn"))
    }
    sizes = {
        "d_model": size["HIDDEN_DIM"],
        "n_heads": 1,
        "num_encoder_layers": size["ENC_LAYERS"],
        "num_decoder_layers": size["DEC_LAYERS"],
        "dim_feedforward": size["DIM_FEEDFORWARD"],
        "n_levels": levels,
        "enc_n_points": samples["encoder"] // levels,
        "dec_n_points": samples["decoder"] // levels,
    }
    queries = size.get("NUM_QUERIES", 1)
    return DeformableDETRHead(
        input_proj=FeatureProjector(
            [weight.shape[1] for weight in first if weight.shape[-1] == 1],
            size["HIDDEN_DIM"],
            levels,
        ),
        transformer=_transformer_of(state_dict, queries, sizes),
        num_classes=size["NUM_CLASSES"],
        num_queries=queries,
        with_box_refine=refines,
        denoising=_denoising_of(state_dict, size["NUM_CLASSES"], size["HIDDEN_DIM"]),
    )


def _detr_head_of(state_dict: StateDict, size: dict[str, int]) -> DETRHead:
    width = size["HIDDEN_DIM"]
    return DETRHead(
        input_proj=PlainProjector(state_dict["head.input_proj.weight"].shape[1], width),
        transformer=DenseTransformer(
            width,
            dim_feedforward=size["DIM_FEEDFORWARD"],
            n_heads=1,
            num_encoder_layers=size["ENC_LAYERS"],
            num_decoder_layers=size["DEC_LAYERS"],
        ),
        num_classes=size["NUM_CLASSES"],
        num_queries=size["NUM_QUERIES"],
    )


def _transformer_of(state_dict: StateDict, queries: int, sizes: dict[str, int]) -> nn.Module:
    if "head.transformer.refpoint_embed.weight" in state_dict:
        return AnchorTransformer(queries, **sizes)
    if not is_two_stage(state_dict):
        return DeformableTransformer(**sizes)
    if "head.transformer.pos_trans.weight" not in state_dict:
        return DINOTransformer(queries, **sizes)
    mixed = "head.query_embed.weight" in state_dict
    return TwoStageDeformableTransformer(queries, mixed, **sizes)


def _denoising_of(state_dict: StateDict, num_classes: int, hidden_dim: int) -> Denoising | None:
    book, indicator = state_dict.get(LABEL_BOOK), has_indicator(state_dict)
    if book is None and not indicator:
        return None
    return Denoising(
        num_classes if book is None else len(book) - 1, hidden_dim, indicator=indicator
    )
