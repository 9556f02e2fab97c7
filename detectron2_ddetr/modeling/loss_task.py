"""What a set of predictions is compared with: the unit that the criterion works through."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Targets = list[dict[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]
Matcher = Callable[[dict[str, Tensor], Targets], Indices]
#: (boxes of a batch, averaged over all processes; boxes of the batch of this process) -> what
#: the losses of a task are divided by.
Normalizer = Callable[[Tensor, int], Tensor]


def per_box(mean_boxes: Tensor, boxes: int) -> Tensor:
    """As many boxes as a process has on average, at least 1 (DETR, Sec. A.2)."""
    return mean_boxes.clamp(min=1.0)


@dataclass
class LossTask:
    """
    One set of predictions, what they are compared with and how they are matched.

    Attributes:
        suffix: appended to the names of its losses.
        outputs: "pred_logits" (N, Q, K), "pred_boxes" (N, Q, 4), (cx, cy, w, h) in [0, 1].
        targets: per image "labels" (T_i,), "boxes" (T_i, 4).
        matcher: (outputs, targets) -> per image (query_idx, target_idx).
        normalizer: what its losses are divided by.
        weight: factor of all its losses.
        repeats: how many queries are matched with each target, as far as there are queries.
    """

    suffix: str
    outputs: dict[str, Tensor]
    targets: Targets
    matcher: Matcher
    normalizer: Normalizer = per_box
    weight: float = 1.0
    repeats: int = 1
