"""Weights that only training needs: left out of a checkpoint for inference, and missing in one."""

import torch
from torch import nn

from ..errors import InputError
from .class_rows import LABEL_BOOK, encoder_head
from .project import StateDict

_QUERIES = "head.query_embed.weight"
#: More queries than this were not made to detect alone.
_MOST_QUERIES = 1000


def with_many_queries(state_dict: StateDict) -> bool:
    """Whether these are weights of a model with one-to-many queries; by their number."""
    queries = state_dict.get(_QUERIES)
    return queries is not None and _is_mixed(state_dict) and len(queries) > _MOST_QUERIES


def without_train_only(
    state_dict: StateDict, num_queries: int | None
) -> tuple[StateDict, list[str]]:
    """
    Args:
        state_dict: under the names here.
        num_queries: how many queries detect, the first, in a model with one-to-many queries.

    Returns:
        (weights, lines): without the label embedding of denoising queries and without one-to-many
        queries; what was left out, in words.

    Raises:
        InputError: if `num_queries` is needed and not given, or cannot be.
    """
    kept, lines = dict(state_dict), []
    if kept.pop(LABEL_BOOK, None) is not None:
        lines.append("the label embedding of denoising queries")
    if num_queries is None:
        if with_many_queries(state_dict):
            raise InputError(
                f"of its {len(state_dict[_QUERIES])} queries some are of one-to-many matching, and "
                "the file does not say how many detect: give --num-queries, 300 in most "
                "H-Deformable-DETR"
            )
        return kept, lines
    count = len(state_dict[_QUERIES]) if _is_mixed(state_dict) else 0
    if not 0 < num_queries <= count:
        raise InputError(
            f"--num-queries is {num_queries}, and must be from 1 to {count}, all of its queries"
            if count
            else "--num-queries is for H-Deformable-DETR, which has one-to-many queries"
        )
    if num_queries < count:
        kept[_QUERIES] = state_dict[_QUERIES][:num_queries].clone()
        lines.append(f"{count - num_queries} one-to-many queries")
    return kept, lines


def with_train_only(found: StateDict, model: nn.Module) -> tuple[StateDict, str]:
    """
    Args:
        found: of a :class:`SetDetector`, under the names of `model`.

    Returns:
        (weights, line): with what only training needs as `model` has it, where that is missing;
        and that in words. What was given, and "", where nothing of it is missing.
    """
    if "head.class_embed.0.bias" not in found:  # of a backbone alone
        return found, ""
    expected = model.state_dict()
    filled, lines = dict(found), []
    if LABEL_BOOK in expected and LABEL_BOOK not in found:
        filled[LABEL_BOOK] = expected[LABEL_BOOK]
        lines.append("the label embedding of denoising queries")
    queries = found.get(_QUERIES)
    many = getattr(model.head, "one_to_many", None)
    if many and queries is not None and len(queries) == model.head.num_queries:
        more = expected[_QUERIES][len(queries) :].to(queries)
        if more.shape[1:] == queries.shape[1:]:
            filled[_QUERIES] = torch.cat((queries, more))
            lines.append(f"{len(more)} one-to-many queries")
    if not lines:
        return found, ""
    return filled, f"has not {' and '.join(lines)}, which only training needs: they start anew"


def _is_mixed(state_dict: StateDict) -> bool:
    """Whether it is a two-stage model with learned content and positions made of proposals."""
    return encoder_head(state_dict) is not None and _QUERIES in state_dict
