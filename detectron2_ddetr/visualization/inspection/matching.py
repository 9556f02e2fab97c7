"""Which query is matched with which ground truth box, and what each pair would cost."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...modeling import HungarianMatcher, box_cxcywh_to_xyxy
from ..drawing import class_color, class_name, draw_boxes
from ..text import line_height, shortened, text_width, write
from .ink import DARK, WHITE, box_icon, outline
from .panels import FONT, Panel, color_bar, colored, picture, sheet_of
from .view import View

#: Rows and columns of the matrix at most; more could not be read.
MAX_ROWS, MAX_COLUMNS = 20, 24
CELL, LABEL, SMALL = 36, 130, 11  # px; the last is of the font


class Matched(NamedTuple):
    """
    Attributes:
        target: "labels" (T,), "boxes" (T, 4), (cx, cy, w, h) in [0, 1] of the image.
        cost: (Q, T), of every pair.
        pairs: (query, target), by target.
    """

    target: dict[str, Tensor]
    cost: np.ndarray
    pairs: list[tuple[int, int]]


def match(view: View, matcher: HungarianMatcher, target: dict[str, Tensor]) -> Matched:
    """Of the predictions of the last layer, as :class:`Matched` says."""
    outputs = {key: view.captured.outputs[key][view.index] for key in ("pred_logits", "pred_boxes")}
    logits, boxes = (outputs[key].float() for key in ("pred_logits", "pred_boxes"))
    target = {key: x.to(logits.device) for key, x in target.items()}
    cost = matcher.cost(logits, boxes, target).cpu().numpy()
    ((queries, targets),) = matcher({k: x[None] for k, x in outputs.items()}, [target])
    pairs = sorted(zip(queries.tolist(), targets.tolist()), key=lambda pair: pair[1])
    return Matched(target, cost, pairs)


def matching(view: View, matched: Matched) -> np.ndarray:
    """
    Above, the ground truth and the boxes of the queries that are matched with it; below, the costs
    that decided so.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if the image has no ground truth.
    """
    if not matched.pairs:
        raise ValueError("nothing is matched: the image has no ground truth box")
    labels = matched.target["labels"].tolist()
    names = [f"{t} {class_name(label, view.class_names)}" for t, label in enumerate(labels)]
    total = sum(matched.cost[pair] for pair in matched.pairs)
    rows, columns = _rows(matched), _columns(matched)
    said = (
        f"what each pair would cost; the {len(matched.pairs)} chosen cost {total:.2f} together. "
        f"Here are {len(rows)} of {len(labels)} boxes and {len(columns)} of {len(matched.cost)} "
        "queries, first those that are chosen, then the cheapest"
    )
    panels = [
        Panel("ground truth, and what is matched with it", draw_pairs(view, matched, names)),
        Panel(said, _matrix(matched, [names[t] for t in rows], rows, columns)),
    ]
    return picture(
        "The matching of queries and ground truth, in the last layer of the decoder",
        panels,
        [
            (box_icon(FONT, class_color(0), 3), "ground truth"),
            (box_icon(FONT, class_color(0), 1, edge=False), "its prediction"),
            (color_bar(), "cost, from high to low"),
            (box_icon(FONT, WHITE), "chosen"),
        ],
        columns=1,
    )


def _rows(matched: Matched) -> list[int]:
    """Ground truth boxes, those that are matched."""
    return [target for _, target in matched.pairs[:MAX_ROWS]]


def _columns(matched: Matched) -> list[int]:
    """The queries that are matched with the rows, in their order, then those that cost least."""
    queries = [query for query, _ in matched.pairs[:MAX_ROWS]]
    others = np.argsort(matched.cost[:, _rows(matched)].min(1), kind="stable").tolist()
    others = [query for query in others if query not in queries]
    return queries + others[: MAX_COLUMNS - len(queries)]


def draw_pairs(
    view: View, matched: Matched, names: Sequence[str], num_panels: int = 1
) -> np.ndarray:
    """Each ground truth box and its prediction in a colour of their own, (H, W, 3) uint8 RGB."""
    sheet = sheet_of(view.image, num_panels)
    truth = sheet.at(view.to_pixels(box_cxcywh_to_xyxy(matched.target["boxes"].float())))
    predicted = sheet.at(view.boxes(view.captured.num_layers("decoder") - 1))
    for query, target in matched.pairs:
        outline(sheet.pixels, predicted[query], class_color(target), 1, edge=False)
    return draw_boxes(sheet.pixels, truth, range(len(truth)), class_names=names)


def _matrix(
    matched: Matched, names: Sequence[str], rows: Sequence[int], columns: Sequence[int]
) -> np.ndarray:
    """(H, W, 3) uint8: costs as colours and numbers, with the names of rows and columns."""
    cost = matched.cost[np.ix_(columns, rows)].T
    share = 1 - (cost - cost.min()) / max(float(np.ptp(cost)), 1e-12)
    colors = colored(share)
    top = line_height(SMALL) + 4
    canvas = np.full(
        (top + len(rows) * CELL + 2, LABEL + len(columns) * CELL + 2, 3), 255, np.uint8
    )
    chosen = set(matched.pairs)
    for i, target in enumerate(rows):
        y = top + i * CELL
        canvas[y + 10 : y + CELL - 10, 2:14] = class_color(target)
        name = shortened(names[i], SMALL + 2, LABEL - 24)
        write(canvas, name, 18, y + (CELL - line_height(SMALL + 2)) // 2, SMALL + 2, DARK)
        for j, query in enumerate(columns):
            x = LABEL + j * CELL
            patch = canvas[y : y + CELL, x : x + CELL]
            patch[:] = colors[i, j]
            ink = DARK if np.dot(colors[i, j], (0.299, 0.587, 0.114)) > 110 else WHITE
            _centred(patch, f"{cost[i, j]:.1f}", ink)
    for j, query in enumerate(columns):
        patch = canvas[: top - 4, LABEL + j * CELL : LABEL + (j + 1) * CELL]
        _centred(patch, str(query), DARK)
        for i, target in enumerate(rows):
            if (query, target) in chosen:
                x, y = LABEL + j * CELL, top + i * CELL
                outline(canvas, (x + 2, y + 2, x + CELL - 1, y + CELL - 1), WHITE, 2)
    write(canvas, "query", 0, 0, SMALL + 2, DARK)
    return canvas


def _centred(patch: np.ndarray, text: str, ink: tuple[int, int, int]) -> None:
    left = max(0, (patch.shape[1] - text_width(text, SMALL)) // 2)
    write(patch, text, left, max(0, (patch.shape[0] - line_height(SMALL)) // 2), SMALL, ink)
