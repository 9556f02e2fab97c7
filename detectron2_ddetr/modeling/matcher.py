"""Hungarian matching of predictions and targets (DETR, Sec. 3.1, with the focal class cost)."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from .loss_task import Indices, LossTask, Targets
from .precision import at_least_float32
from .targets import check_targets

#: What a pair costs whose prediction is not finite: more than any finite one.
NON_FINITE_COST = 1e8
#: Pairs whose costs are computed at a time: of more, they leave the cache of a CPU.
_PAIRS_AT_A_TIME = 2**17


def focal_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Cost of predicting each target's class, derived from the focal loss with alpha 0.25, gamma 2.

    Args:
        logits: (Q, K).
        labels: (T,) int64.

    Returns:
        (Q, T).
    """
    # Not an index, which takes -1 for the last class: this refuses it, on a GPU too.
    prob = logits.index_select(1, labels).sigmoid()
    positive = 0.25 * (1 - prob) ** 2 * -(prob + 1e-8).log()
    negative = 0.75 * prob**2 * -(1 - prob + 1e-8).log()
    return positive - negative


class HungarianMatcher(nn.Module):
    """
    Assigns each target the one query that makes the total cost smallest.

    Always computed in float32 (float64 for float64 predictions): the 1e-8 in the class cost
    vanishes in 16 bits.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        class_cost_function: Callable[[Tensor, Tensor], Tensor] = focal_cost,
        giou_eps: float = 0.0,
    ):
        """
        Args:
            cost_class, cost_bbox, cost_giou: weights of the class cost, of the L1 distance of
                (cx, cy, w, h) in [0, 1], and of the negative generalised IoU.
            class_cost_function: (Q, K) logits, (T,) labels -> (Q, T). The Q are queries of one
                image, of several layers and groups.
            giou_eps: of :func:`generalized_box_iou`.

        Raises:
            ValueError: for weights that are negative or not finite, or all zero.
        """
        super().__init__()
        costs = (cost_class, cost_bbox, cost_giou)
        if not all(0 <= cost < math.inf for cost in costs) or not any(costs):
            raise ValueError(
                "cost_class, cost_bbox and cost_giou must be at least 0, one of them more, got "
                f"{costs}"
            )
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.class_cost_function, self.giou_eps = class_cost_function, giou_eps

    def cost(self, logits: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
        """
        Args:
            logits, boxes: (Q, K) and (Q, 4), (cx, cy, w, h), of one image.
            target: "labels" (T,), "boxes" (T, 4), (cx, cy, w, h), of the same image.

        Returns:
            (Q, T).
        """
        target_boxes = target["boxes"].to(boxes.dtype)
        giou = generalized_box_iou(
            box_cxcywh_to_xyxy(boxes)[:, None], box_cxcywh_to_xyxy(target_boxes), self.giou_eps
        )
        return (
            self.cost_bbox * torch.cdist(boxes, target_boxes, p=1)
            + self.cost_class * self.class_cost_function(logits, target["labels"])
            - self.cost_giou * giou
        )

    def forward(self, outputs: dict[str, Tensor], targets: Targets) -> Indices:
        """
        Args:
            outputs: "pred_logits" (N, Q, K), "pred_boxes" (N, Q, 4), (cx, cy, w, h).
            targets: per image "labels" (T_i,) and "boxes" (T_i, 4), (cx, cy, w, h) in [0, 1].
                An image may have none, or more than Q, of which Q are matched.

        Returns:
            Per image (query_idx, target_idx), int64 on the CPU, min(Q, T_i) each, query_idx
            ascending. Where predictions are not finite the assignment is arbitrary, so that the
            loss, which is then not finite either, reports the fault together with its terms.

        Raises:
            ValueError: for outputs and targets that do not fit, see :func:`check_targets`.
        """
        check_targets(outputs, targets)
        return self.match([LossTask("", outputs, targets, self)])[0]

    @torch.no_grad()
    def match(self, tasks: Sequence[LossTask]) -> list[Indices]:
        """
        Several sets of predictions, such as those of all layers, whose targets were checked before.
        Those compared with one list of targets share the computation of costs, and all share one
        transfer to the CPU; predictions and targets of different images are never compared.

        Returns:
            For each task what :meth:`forward` says. With `repeats` R, there are min(Q, R * T_i),
            and each target is among target_idx at most R times.
        """
        alike: dict[int, list[int]] = {}
        for i, task in enumerate(tasks):
            alike.setdefault(id(task.targets), []).append(i)
        costs: list[Tensor] = []
        places: list[tuple[int, tuple[int, int]]] = []
        for members in alike.values():
            for image, target in enumerate(tasks[members[0]].targets):
                logits, boxes = (
                    [at_least_float32(tasks[i].outputs[key][image]) for i in members]
                    for key in ("pred_logits", "pred_boxes")
                )
                costs += self._flat_costs(torch.cat(logits), torch.cat(boxes), target)
                places += [(i, (len(q), len(target["labels"]))) for i, q in zip(members, boxes)]
        indices: list[Indices] = [[] for _ in tasks]
        if not costs:
            return indices
        flat = torch.cat(costs).cpu().numpy()
        flat[~np.isfinite(flat)] = NON_FINITE_COST
        ends = np.cumsum([queries * count for _, (queries, count) in places])[:-1]
        for (i, shape), block in zip(places, np.split(flat, ends)):
            cost = block.reshape(shape)
            if (repeats := tasks[i].repeats) > 1:
                cost = np.tile(cost, repeats)
            query_idx, target_idx = map(torch.from_numpy, linear_sum_assignment(cost))
            indices[i].append((query_idx, target_idx % max(1, shape[1])))
        return indices

    def _flat_costs(
        self, logits: Tensor, boxes: Tensor, target: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """:meth:`cost` row by row, in parts."""
        rows = max(1, _PAIRS_AT_A_TIME // max(1, len(target["labels"])))
        for part in zip(logits.split(rows), boxes.split(rows)):
            yield self.cost(*part, target).flatten()
