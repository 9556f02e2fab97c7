"""The groups of queries that a model trains with, and which of them see which."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from ...modeling import DeformableDETRHead, QueryGroup, attention_mask
from .ink import DARK, swatch
from .panels import FONT, Panel, picture

#: Long side of the mask, px; of the bars beside it, and between the two.
SIDE, BAR, GAP = 600, 18, 4
SEEN, BLOCKED = (225, 232, 240), (60, 66, 74)
#: Of the groups, in their order: of Okabe and Ito.
COLORS = [(213, 94, 0), (0, 158, 115), (86, 180, 233), (150, 60, 160)]
#: What the suffixes stand for.
NAMES = {"": "detect", "_dn": "denoise", "_one2many": "one-to-many"}


def query_groups(groups: Sequence[QueryGroup]) -> np.ndarray:
    """
    The mask of self-attention, a row for each query that looks and a column for each that is
    looked at; beside it, in the colour of its group, the query.

    Args:
        groups: in the order of their queries.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    size = sum(group.size for group in groups)
    mask = attention_mask(groups)
    seen = np.ones((size, size), dtype=bool) if mask is None else ~mask.numpy()
    cells = np.where(seen[..., None], SEEN, BLOCKED).astype(np.uint8)
    colors = [c for g, c in zip(groups, COLORS) for _ in range(g.size)]
    bar = np.array(colors, dtype=np.uint8)[:, None]
    side = max(size, SIDE // size * size)  # whole pixels for each query
    canvas = np.full((BAR + GAP + side,) * 2 + (3,), 255, dtype=np.uint8)
    canvas[BAR + GAP :, BAR + GAP :] = _enlarged(cells, side, side)
    canvas[BAR + GAP :, :BAR] = _enlarged(bar, BAR, side)
    canvas[:BAR, BAR + GAP :] = _enlarged(bar.transpose(1, 0, 2), side, BAR)
    for border in np.cumsum([group.size for group in groups])[:-1] * side // size + BAR + GAP:
        canvas[border - 1 : border + 1, BAR + GAP :] = DARK
        canvas[BAR + GAP :, border - 1 : border + 1] = DARK
    share = 100 * float(seen.mean())
    icons = [(swatch(FONT, c), _said(group)) for group, c in zip(groups, COLORS)]
    icons += [(swatch(FONT, SEEN), "seen"), (swatch(FONT, BLOCKED), "not seen")]
    caption = f"rows look, columns are looked at; {share:.0f} % of all pairs are seen"
    return picture("Who sees whom among the queries, in training", [Panel(caption, canvas)], icons)


def groups_of(head: DeformableDETRHead, target: dict[str, Tensor]) -> list[QueryGroup]:
    """All that a head trains with on one image, in the order of their queries."""
    groups = [QueryGroup(head.num_queries)]
    if head.one_to_many is not None:
        groups.append(head.one_to_many.group(head.one_to_many.num_queries))
    if head.denoising is not None:
        groups.insert(0, head.denoising([target])[2])
    return groups


def _said(group: QueryGroup) -> str:
    blocks = f" in {group.blocks} groups" if group.blocks > 1 else ""
    return f"{group.size} {NAMES.get(group.suffix, group.suffix)}{blocks}"


def _enlarged(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST)
