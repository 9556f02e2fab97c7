"""What each query adds to the loss, term by term."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...modeling import LossTask, SetCriterion
from ..drawing import class_color, class_name, draw_boxes
from ..text import line_height, shortened, write
from .ink import DARK, Color, swatch
from .matching import Matched
from .panels import FONT, Panel, picture, sheet_of
from .view import View

#: Queries with a bar of their own.
MAX_BARS = 20
ROW, NAME = 26, 250  # px
#: Of Okabe and Ito, by term; further terms get the last.
TERMS: list[Color] = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)]


def losses_of_queries(
    criterion: SetCriterion, view: View, matched: Matched
) -> dict[str, np.ndarray]:
    """
    The terms of the last layer, weighted, by query.

    Returns:
        "loss_ce", "loss_bbox", "loss_giou", (Q,) each; their sums are what the criterion gives for
        this image alone. Those of boxes are 0 for a query that is not matched.
    """
    outputs = {key: view.captured.outputs[key] for key in ("pred_logits", "pred_boxes")}
    logits, boxes = (x[view.index].float() for x in outputs.values())
    labels, targets = matched.target["labels"], matched.target["boxes"].to(boxes.dtype)
    num_boxes = logits.new_tensor(float(max(1, len(labels))))
    whole = LossTask("", {"pred_logits": logits[None]}, [matched.target], criterion.matcher)
    ce_normalizer = criterion.ce_normalizer(whole, num_boxes)
    found = dict(matched.pairs)
    zero = logits.new_zeros(1, dtype=labels.dtype)
    losses = {name: np.zeros(len(logits)) for name in criterion.weights}

    def add(query: int, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            losses[name][query] = float(term) * criterion.weights[name]

    for query in range(len(logits)):
        own = [found[query]] if query in found else []
        place = zero[: len(own)]
        # The query alone, by the criterion's own formulas: all of them are sums over queries.
        ce = criterion.loss_ce(logits[None, query, None], (place, place), labels[own])
        add(query, {"loss_ce": ce / ce_normalizer})
        if own:
            add(query, criterion.loss_boxes(boxes[query, None], targets[own], num_boxes))
    return losses


def query_losses(view: View, matched: Matched, losses: dict[str, np.ndarray]) -> np.ndarray:
    """
    Left the boxes of the queries with the largest losses, right a bar of each.

    Args:
        losses: of :func:`losses_of_queries`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    total = sum(losses.values())
    worst = np.argsort(-total, kind="stable")[:MAX_BARS].tolist()
    found = dict(matched.pairs)
    layer = view.captured.num_layers("decoder") - 1
    labels = matched.target["labels"].tolist()
    names = []
    for query in worst:
        said = "nothing"
        if query in found:
            said = f"box {found[query]} {class_name(labels[found[query]], view.class_names)}"
        names.append(f"{query}: {view.say(view.detection_of(query, layer))}, {said}")
    sheet = sheet_of(view.image, 2)
    boxes = sheet.at(view.boxes(layer)[worst])
    drawn = draw_boxes(sheet.pixels, boxes, range(len(worst)), class_names=[str(q) for q in worst])
    rest = float(total.sum() - total[worst].sum())
    panels = [
        Panel(f"the boxes of the {len(worst)} queries with the largest losses", drawn),
        Panel(
            f"query: its class and score, what it is matched with, its loss; the other "
            f"{len(total) - len(worst)} queries together: {rest:.3f}",
            _bars(names, {name: loss[worst] for name, loss in losses.items()}),
        ),
    ]
    icons = [
        (swatch(FONT, TERMS[min(i, 3)]), f"{name} ({loss.sum():.2f})")
        for i, (name, loss) in enumerate(losses.items())
    ]
    title = f"The loss of each query in the last layer of the decoder: {total.sum():.2f} in all"
    return picture(title, panels, icons)


def _bars(names: Sequence[str], terms: dict[str, np.ndarray]) -> np.ndarray:
    """(H, 600, 3) uint8: a row per query, its terms one after the other."""
    width = 600
    canvas = np.full((max(1, len(names)) * ROW, width, 3), 255, dtype=np.uint8)
    total = sum(terms.values())
    per_px = max(float(total.max(initial=0)), 1e-12) / (width - NAME - 60)
    top = (ROW - line_height(FONT - 3)) // 2
    for row, name in enumerate(names):
        line = canvas[row * ROW : (row + 1) * ROW]
        line[6:-6, :12] = class_color(row)
        write(line, shortened(name, FONT - 3, NAME - 24), 18, top, FONT - 3, DARK)
        ends = np.round(np.cumsum([0.0, *(term[row] for term in terms.values())]) / per_px)
        for i, (start, end) in enumerate(zip(ends, ends[1:])):
            line[4:-4, NAME + int(start) : NAME + int(end)] = TERMS[min(i, 3)]
        write(line, f"{total[row]:.3f}", NAME + int(ends[-1]) + 6, top, FONT - 3, DARK)
    return canvas
