"""Weights of a detector of other classes, or with another number of queries, made to fit."""

import re
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError
from ..modeling.two_stage import OBJECTNESS_CHANNEL
from .class_rows import CLASS_HEAD, LABEL_BOOK, encoder_head, num_class_rows, rows_by_name
from .project import is_dense

StateDict = dict[str, Tensor]

#: Tensors with a row for each query.
_QUERIES = ("head.query_embed.weight", "head.transformer.refpoint_embed.weight")
_PARTS = re.compile(r"^(backbone|head\.[a-z_]+)\.")


def fit_classes_and_queries(
    found: StateDict,
    model: StateDict,
    found_names: Sequence[str] | None,
    names: Sequence[str],
) -> tuple[StateDict, list[str]]:
    """
    Class rows go by name: a class that the weights know keeps its row, another starts anew. Of the
    queries, as many as the model has are kept, from the first on; further ones start anew.

    The row of a proposing encoder that says "an object", and that of DETR which says "no object",
    stay what they are.

    Args:
        found: weights under the names of the model.
        model: its state dict as it was initialised, from which what is new is taken.
        found_names: of the classes of the weights; None where they are not known: then their rows
            are taken by number if there are as many, and none otherwise.
        names: of the classes of the model.

    Returns:
        (weights, lines): without change if everything fits; what was done, in words.

    Raises:
        InputError: if there is not a name for each class row.
    """
    count = num_class_rows(found)
    if count is None or num_class_rows(model) != len(names):
        return found, []
    if found_names is not None and len(found_names) != count:
        raise InputError(
            f"the weights have {count} class rows, but {len(found_names)} class names: load the "
            "weights alone, without the names"
        )
    sources, said = _sources(found_names, names, count)
    fitted, lines = dict(found), []
    if sources != list(range(count)):
        encoder = encoder_head(model)
        for key in model:
            matched = CLASS_HEAD.match(key)
            if matched and key in found and found[key].shape[1:] == model[key].shape[1:]:
                rows = [*sources, count] if is_dense(found) and is_dense(model) else sources
                if int(matched[1]) == encoder:
                    others = [r if r < count else None for r in range(len(names))]
                    rows = [OBJECTNESS_CHANNEL, *others[1:]]
                fitted[key] = _rows(found[key], model[key], rows)
            if key == LABEL_BOOK and key in found and count + 1 == len(found[key]):
                fitted[key] = _rows(found[key], model[key], [*sources, count])
        lines.append(said)
    for key in _QUERIES:
        if key not in found or key not in model or found[key].shape == model[key].shape:
            continue
        old, new = len(found[key]), len(model[key])
        if found[key].shape[1:] == model[key].shape[1:]:
            kept = [row if row < old else None for row in range(new)]
            fitted[key] = _rows(found[key], model[key], kept)
            said = f"the first {new} of {old}" if new < old else f"{old}, and {new - old} new ones"
            lines.append(f"queries: {said}")
    return fitted, list(dict.fromkeys(lines))


def tensors_by_part(
    found: StateDict, fitted: StateDict, model: StateDict, in_file: int
) -> list[str]:
    """
    A table: for each part of the model, how many tensors were loaded, mapped, and start anew.

    Args:
        found: weights under the names of the model, as the file has them.
        fitted: the same, as they are loaded.
        in_file: how many tensors the file has.
    """
    parts: dict[str, Counter[str]] = {}
    for key, value in model.items():
        matched = _PARTS.match(key)
        part = parts.setdefault(matched[1] if matched else key, Counter())
        if key not in fitted:
            part["new"] += 1
        else:
            part["loaded" if fitted[key] is found[key] else "mapped"] += 1
    width = max(map(len, parts))
    kinds = ("loaded", "mapped", "new")
    lines = [" " * width + "".join(f"{kind:>9}" for kind in kinds)]
    for name, counts in parts.items():
        lines.append(f"{name:<{width}}" + "".join(f"{counts[kind]:>9}" for kind in kinds))
    unused = in_file - sum(key in model for key in found)
    if unused > 0:
        lines.append(f"{unused} tensors of the file have no place in the model")
    return lines


def _sources(
    found_names: Sequence[str] | None, names: Sequence[str], count: int
) -> tuple[list[int | None], str]:
    """The row of each class in the weights, None for a new one; and that in words."""
    if found_names is None:
        if count == len(names):
            return list(range(count)), ""
        return [None] * len(names), (
            f"class rows: all {len(names)} are new, since the file does not name its {count}"
        )
    sources = rows_by_name(found_names, names)
    kept = [name for name, row in zip(names, sources) if row is not None]
    new = [name for name, row in zip(names, sources) if row is None]
    rest = sum(bool(name) for name in found_names) - len(kept)
    said = f"class rows: by name {_listed(kept)}; new {_listed(new)}"
    return sources, f"{said}; of the file's, {rest} are not used" if rest else said


def _listed(names: Sequence[str]) -> str:
    more = f", ... {len(names)} in all" if len(names) > 10 else ""
    return (", ".join(names[:10]) + more) or "none"


def _rows(old: Tensor, new: Tensor, sources: Sequence[int | None]) -> Tensor:
    """`new` with the rows of `old` where there is a source."""
    fitted = new.detach().clone()
    for row, source in enumerate(sources):
        if source is not None:
            fitted[row] = old[source].to(fitted)
    return fitted
