"""What DETR learns a class by: cross-entropy, with a class that says that there is no object."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .criterion import SetCriterion
from .loss_task import LossTask, Matcher
from .matcher import HungarianMatcher


def softmax_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Cost of predicting each target's class: less its probability (DETR, Sec. 3.1).

    Args:
        logits: (Q, K + 1).
        labels: (T,) int64.

    Returns:
        (Q, T).
    """
    return -logits.softmax(-1).index_select(1, labels)


class SoftmaxMatcher(HungarianMatcher):
    """:class:`HungarianMatcher` with the class cost of DETR."""

    def __init__(self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0):
        super().__init__(cost_class, cost_bbox, cost_giou, softmax_cost)


class SoftmaxCriterion(SetCriterion):
    """
    Losses of DETR. Queries that are not matched are to predict no object, the last class, which
    counts less since most of them are such.
    """

    num_background_classes = 1

    def __init__(
        self,
        matcher: Matcher,
        loss_ce_weight: float = 1.0,
        loss_bbox_weight: float = 5.0,
        loss_giou_weight: float = 2.0,
        no_object_weight: float = 0.1,
    ):
        """
        Args:
            matcher, loss_ce_weight, loss_bbox_weight, loss_giou_weight: of :class:`SetCriterion`.
            no_object_weight: of a query without object in the class loss, where one with an object
                has 1; above 0.

        Raises:
            ValueError: for weights that cannot be.
        """
        super().__init__(matcher, loss_ce_weight, loss_bbox_weight, loss_giou_weight)
        if not 0 < no_object_weight <= 1:
            raise ValueError(f"no_object_weight must be above 0, at most 1, got {no_object_weight}")
        self.no_object_weight = no_object_weight

    def loss_ce(self, logits: Tensor, matched: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Weighted cross-entropy summed over all queries; logits are (N, Q, K + 1)."""
        no_object = logits.shape[2] - 1
        wanted = torch.full(logits.shape[:2], no_object, device=logits.device)
        wanted[matched] = labels
        weight = logits.new_ones(logits.shape[2])
        weight[no_object] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="sum")

    def ce_normalizer(self, task: LossTask, num_boxes: Tensor) -> float:
        """
        The sum of the weights of all queries, those of the parts that are still to come included:
        the loss is a mean. As in the authors' code, it is of this process alone.
        """
        queries = task.outputs["pred_logits"].shape[1]
        counts = self.batch_boxes or [len(t["labels"]) for t in task.targets]
        matched = sum(min(queries, count) for count in counts)
        return matched + self.no_object_weight * (len(counts) * queries - matched)

    def diagnose(self, task: LossTask, logits: Tensor, wrong: Tensor) -> None:
        """
        Also "cardinality_error" of each layer: by how many boxes the number of queries that predict
        some object differs from that of the targets, on average.
        """
        super().diagnose(task, logits, wrong)
        counts = torch.tensor([len(t["labels"]) for t in task.targets], device=logits.device)
        found = (logits.argmax(-1) != logits.shape[2] - 1).sum(1)
        self.diagnostics[f"cardinality_error{task.suffix}"] = (found - counts).abs().float().mean()
