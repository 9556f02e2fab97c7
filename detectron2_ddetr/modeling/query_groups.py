"""Groups of queries: who sees whom in self-attention, and what each group learns from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .loss_task import LossTask, Matcher, Targets

#: (suffix, predictions of one layer for the group, targets, matcher) -> the task.
Supervise = Callable[[str, dict[str, Tensor], Targets, Matcher], LossTask]


@dataclass(frozen=True)
class QueryGroup:
    """
    Queries that stand one after the other and are treated alike.

    Attributes:
        size: how many.
        suffix: of the names of its losses. "" is the group that detects; the others exist in
            training only.
        sees: suffixes of the other groups whose queries these attend to.
        blocks: equal parts of the group that do not see each other.
        supervise: what the predictions of each layer are compared with.
    """

    size: int
    suffix: str = ""
    sees: frozenset[str] = frozenset()
    blocks: int = 1
    supervise: Supervise = LossTask


def attention_mask(
    groups: Sequence[QueryGroup], device: torch.device | None = None
) -> Tensor | None:
    """
    Args:
        groups: in the order of their queries.

    Returns:
        (Q, Q) bool, True = the row may not attend to the column; None where every query sees every
        other.
    """
    if len(groups) == 1 and groups[0].blocks == 1:
        return None
    blocks = [
        torch.arange(group.blocks, device=device).repeat_interleave(group.size // group.blocks)
        for group in groups
    ]
    of_block = torch.cat(blocks)
    of_group = torch.cat([torch.full_like(block, i) for i, block in enumerate(blocks)])
    sees = torch.tensor([[b.suffix in a.sees for b in groups] for a in groups], device=device)
    alike = (of_block[:, None] == of_block) & (of_group[:, None] == of_group)
    return ~(alike | sees[of_group[:, None], of_group])


@dataclass(frozen=True)
class OneToMany:
    """
    A second group of queries that learn from every target several times over, in training only
    (hybrid matching, https://arxiv.org/abs/2207.13080).

    Attributes:
        num_queries: of the group, besides those that detect.
        repeats: how many queries are matched with each target, as far as there are queries.
        loss_weight: of the losses of the group.
    """

    num_queries: int = 1500
    repeats: int = 6
    loss_weight: float = 1.0

    def group(self, size: int) -> QueryGroup:
        """`size` queries; they and the others do not see each other."""
        return QueryGroup(size, "_one2many", supervise=self.supervise)

    def supervise(
        self, suffix: str, outputs: dict[str, Tensor], targets: Targets, matcher: Matcher
    ) -> LossTask:
        """The ordinary matching with the targets of each image repeated one after the other."""
        per_copy, weight = self.per_copy, self.loss_weight
        return LossTask(suffix, outputs, targets, matcher, per_copy, weight, self.repeats)

    def per_copy(self, mean_boxes: Tensor, boxes: int) -> Tensor:
        """Copies count, whether or not there is a query for each."""
        return (mean_boxes * self.repeats).clamp(min=1.0)
