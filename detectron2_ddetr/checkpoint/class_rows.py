"""The rows of the class heads: chosen, put into another order, and found by name."""

import re
from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError
from ..modeling.two_stage import OBJECTNESS_CHANNEL
from .project import StateDict, is_dense, is_two_stage

CLASS_HEAD = re.compile(r"^head\.class_embed\.(\d+)\.(weight|bias)$")
#: Denoising models embed the classes of their queries: a row for each, and one of none.
LABEL_BOOK = "head.denoising.label_enc.weight"
#: The logit of a row that no class has: its detections come after all others.
_NEVER = -100.0


def num_class_rows(state_dict: StateDict) -> int | None:
    """None of weights without a class head; DETR's row of no object does not count."""
    bias = state_dict.get("head.class_embed.0.bias")
    return None if bias is None else len(bias) - is_dense(state_dict)


def encoder_head(state_dict: StateDict) -> int | None:
    """
    The class head that tells objects from background: that of a proposing encoder, the last. None
    where no encoder proposes, or it tells classes as in DINO.
    """
    tells_classes = "head.transformer.pos_trans.weight" not in state_dict
    if not is_two_stage(state_dict) or tells_classes:
        return None
    return max(int(matched[1]) for key in state_dict if (matched := CLASS_HEAD.match(key)))


def rows_by_name(found: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """
    The row of each wanted class among `found`, None where there is none. Case and spaces around a
    name do not count; of two rows of one name, the first is taken; "" is no name.
    """
    row_of = {_plain(name): row for row, name in reversed(list(enumerate(found))) if name}
    return [row_of.get(_plain(name)) for name in wanted]


def _plain(name: str) -> str:
    return name.strip().casefold()


def take_class_rows(state_dict: StateDict, rows: Sequence[int | None]) -> StateDict:
    """
    The same weights with other class rows.

    The head of a two-stage encoder keeps its objectness row first, whatever is chosen. Its other
    rows were trained as pure background; those of the chosen classes follow in their order. An
    encoder that tells classes (DINO) is like the decoder. A label book and the heads of DETR keep
    their last row, which is of no class.

    Args:
        state_dict: under the names here.
        rows: where each new row comes from; None for one that no class has.

    Raises:
        InputError: if a head does not have such a row.
    """
    of_decoder = list(enumerate(rows))
    taken = [(new, old) for new, old in of_decoder if old is not None]
    places = [0] + [new for new, _ in taken if new != 0]
    sources = [OBJECTNESS_CHANNEL] + [old for _, old in taken if old != OBJECTNESS_CHANNEL]
    of_encoder = list(zip(places, sources))
    last, changed = encoder_head(state_dict), dict(state_dict)
    for key, old in state_dict.items():
        head = CLASS_HEAD.match(key)
        if key == LABEL_BOOK or head and is_dense(state_dict):
            changed[key] = _taken(key, old, [*taken, (len(rows), len(old) - 1)], len(rows) + 1)
        elif head:
            pairs = of_encoder if int(head[1]) == last else taken
            changed[key] = _taken(key, old, pairs, len(rows))
    return changed


def _taken(key: str, old: Tensor, pairs: list[tuple[int, int]], count: int) -> Tensor:
    highest = max(source for _, source in pairs)
    if highest >= len(old):
        raise InputError(
            f"{key} has {len(old)} classes, but row {highest} is asked for: choose other rows, or "
            "keep all of them"
        )
    new = old.new_full((count, *old.shape[1:]), _NEVER if old.dim() == 1 else 0.0)
    places, sources = map(list, zip(*pairs))
    new[places] = old[sources]
    return new
