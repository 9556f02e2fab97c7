"""
Denoising queries: in training, noised targets that the decoder has to restore.

One module for DN-DETR (https://arxiv.org/abs/2203.01305) and for the contrastive form of DINO
(https://arxiv.org/abs/2203.03605, Sec. 3.3), which adds negatives: queries too far from their
target to be taken for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, shift_box
from .loss_task import Indices, LossTask, Matcher, Targets, per_box
from .precision import at_least_float32
from .query_groups import QueryGroup


class Draws:
    """The random numbers of the noise, in the order in which the authors' code draws them."""

    def __init__(self, generator: torch.Generator | None = None):
        """
        Args:
            generator: on the device of the targets; None for PyTorch's own.
        """
        self.generator = generator

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """`shape` float32 in [0, 1)."""
        return torch.rand(tuple(shape), generator=self.generator, device=device)

    def integers(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """`shape` int64 in [0, high)."""
        return torch.randint(high, tuple(shape), generator=self.generator, device=device)


class Denoising(nn.Module):
    """
    Makes the group of denoising queries from the targets of a batch.

    It holds G groups; each has, for every image, as many queries as the image with the most boxes
    has boxes, and as many negatives again where there are negatives. An image with fewer boxes
    has empty queries there: no content, the box in the centre.
    """

    def __init__(
        self,
        num_classes: int,
        d_model: int = 256,
        *,
        num_queries: int = 100,
        num_groups: int | None = None,
        label_noise: float = 0.25,
        box_noise: float = 1.0,
        negatives: bool = True,
        corner_noise: bool = True,
        indicator: bool = False,
        inverse_sigmoid_eps: float = 1e-3,
        draws: Draws | None = None,
    ):
        """
        Args:
            num_classes: K.
            d_model: C.
            num_queries: about how many positives there are for an image: G is this divided by the
                most boxes of an image of the batch, at least 1.
            num_groups: G, whatever the boxes; None for the rule of `num_queries`.
            label_noise: how likely a label is drawn anew from all classes, the true one included.
            box_noise: 1 moves the corners of a positive by up to half the box, and those of a
                negative by half to the whole; of `corner_noise` False, the centre by up to half
                the box, and width and height by up to themselves.
            negatives: whether each group has negatives, whose class is none. With them empty
                queries are background too, and losses are divided by the boxes of all processes;
                without them only noised targets count, divided by their number here.
            corner_noise: noise on the corners (DINO), or on centre and size (DN-DETR).
            indicator: the last channel of the content is 1 for these queries, 0 for others.
            inverse_sigmoid_eps: see :class:`DeformableDETRHead`.
            draws: source of random numbers, by default PyTorch's generator.

        Raises:
            ValueError: for numbers that cannot be, and negatives without noise on corners.
        """
        super().__init__()
        if num_queries < 1 or (num_groups is not None and num_groups < 1):
            raise ValueError(
                f"num_queries and num_groups must be at least 1, got {num_queries}, {num_groups}"
            )
        if not 0 <= label_noise <= 1 or not box_noise >= 0:
            raise ValueError(
                "label_noise must be from 0 to 1 and box_noise at least 0, got "
                f"{label_noise} and {box_noise}"
            )
        if negatives and not corner_noise:
            raise ValueError("negatives are told from positives by the noise on their corners")
        self.num_classes = num_classes
        self.num_queries, self.num_groups = num_queries, num_groups
        self.label_noise, self.box_noise = label_noise, box_noise
        self.negatives, self.corner_noise = negatives, corner_noise
        self.indicator = indicator
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.draws = draws or Draws()
        # One row more than there are classes, as in the checkpoints of the authors, who count an
        # unknown class that no query has.
        self.label_enc = nn.Embedding(num_classes + 1, d_model - indicator)

    def groups_for(self, most_boxes: int) -> int:
        """G for a batch in which an image has at most `most_boxes`."""
        if not most_boxes:
            return 1
        return self.num_groups or max(1, self.num_queries // most_boxes)

    # How many labels are drawn is known only then: PyTorch cannot compile it for all sizes.
    @torch.compiler.disable
    def forward(self, targets: Targets) -> tuple[Tensor, Tensor, QueryGroup]:
        """
        Args:
            targets: per image "labels" (T_i,) in [0, K), "boxes" (T_i, 4), (cx, cy, w, h) in
                [0, 1]. Without any box there are no queries, but the label embedding is still
                part of the graph, as on the processes that have some.

        Returns:
            content: (N, P, C).
            reference_points: (N, P, 4), (cx, cy, w, h), without gradient.
            group: of these P queries, who see those that detect but are not seen.
        """
        counts = [len(target["labels"]) for target in targets]
        num_groups = self.groups_for(max(counts))
        copies = num_groups * (2 if self.negatives else 1)
        size = copies * max(counts)
        labels = torch.cat([target["labels"] for target in targets])
        boxes = at_least_float32(torch.cat([target["boxes"] for target in targets]))
        labels = self.noised_labels(labels.repeat(copies))
        boxes = self.noised_boxes(boxes.repeat(copies, 1), len(labels) // copies)

        # Row r * T + t is copy r of the t-th box of the batch; a group is a run of copies.
        image, of_image = _places(counts)
        slot = torch.arange(copies)[:, None] * max(counts) + of_image
        where = (image.repeat(copies).to(labels.device), slot.flatten().to(labels.device))
        content = self.label_enc(labels)
        if self.indicator:
            content = torch.cat((content, content.new_ones(len(content), 1)), dim=-1)
        empty = content.new_zeros(len(targets), size, content.shape[-1])
        reference_points = boxes.new_full((len(targets), size, 4), 0.5)
        # A reference is what the inverse sigmoid of the box leaves of it.
        moved = shift_box(torch.zeros_like(boxes), boxes, self.inverse_sigmoid_eps)
        group = QueryGroup(
            size, "_dn", frozenset({""}), num_groups, _Restoration(counts, num_groups, self)
        )
        return empty.index_put(where, content), reference_points.index_put(where, moved), group

    def noised_labels(self, labels: Tensor) -> Tensor:
        """(R,) -> (R,): some drawn anew."""
        if not self.label_noise:
            return labels
        chosen = self.draws.uniform(labels.shape, labels.device) < self.label_noise
        # As many as are needed, as in the authors' code; on a GPU, waits for their number.
        drawn = self.draws.integers(self.num_classes, (int(chosen.sum()),), labels.device)
        return labels.masked_scatter(chosen, drawn)

    def noised_boxes(self, boxes: Tensor, num_boxes: int) -> Tensor:
        """
        Args:
            boxes: (R, 4), (cx, cy, w, h): copies of T boxes, of which every other is negative.
            num_boxes: T.

        Returns:
            (R, 4), (cx, cy, w, h). Corners may have crossed, so that a side is negative.
        """
        if not self.box_noise:
            return boxes
        size = boxes[:, 2:]
        if not self.corner_noise:
            noise = self.draws.uniform(boxes.shape, boxes.device) * 2 - 1
            most = torch.cat((size / 2, size), dim=-1)
            return (boxes + noise * most * self.box_noise).clamp(0, 1)
        sign = self.draws.integers(2, boxes.shape, boxes.device) * 2 - 1
        part = self.draws.uniform(boxes.shape, boxes.device)
        if self.negatives:
            negative = torch.arange(len(boxes), device=boxes.device) // max(1, num_boxes) % 2 == 1
            part = part + negative[:, None]
        most = torch.cat((size / 2, size / 2), dim=-1)
        corners = box_cxcywh_to_xyxy(boxes) + part * sign * most * self.box_noise
        return box_xyxy_to_cxcywh(corners.clamp(0, 1))


class _Restoration:
    """What denoising queries are compared with: the targets they were made of."""

    def __init__(self, counts: list[int], num_groups: int, denoising: Denoising):
        self.counts, self.num_groups = counts, num_groups
        self.negatives = denoising.negatives
        #: Slots from one group of positives to the next.
        self.stride = max(counts) * (2 if self.negatives else 1)

    def __call__(
        self, suffix: str, outputs: dict[str, Tensor], targets: Targets, matcher: Matcher
    ) -> LossTask:
        indices = self.indices(outputs, targets)
        if self.negatives:
            return LossTask(suffix, outputs, targets, self.indices, self.per_box_and_group)
        # Only queries that have a target: they become the predictions of a single image.
        device = outputs["pred_logits"].device
        where = (
            torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(indices)]).to(device),
            torch.cat([q for q, _ in indices]).to(device),
        )
        known = {key: outputs[key][where][None] for key in ("pred_logits", "pred_boxes")}
        theirs = {
            key: torch.cat([t[key][j.to(device)] for t, (_, j) in zip(targets, indices)])
            for key in ("labels", "boxes")
        }
        return LossTask(suffix, known, [theirs], _each_its_own, self.per_query)

    def indices(self, outputs: dict[str, Tensor], targets: Targets) -> Indices:
        """The positives of each image, and their targets."""
        starts = torch.arange(self.num_groups)[:, None] * self.stride
        return [
            ((starts + torch.arange(count)).flatten(), torch.arange(count).repeat(self.num_groups))
            for count in self.counts
        ]

    def per_box_and_group(self, mean_boxes: Tensor, boxes: int) -> Tensor:
        return per_box(mean_boxes, boxes) * self.num_groups

    def per_query(self, mean_boxes: Tensor, boxes: int) -> Tensor:
        """Differs from other groups, as the authors' code does: not averaged over processes."""
        return mean_boxes.new_tensor(float(boxes * self.num_groups)).clamp(min=1.0)


def _each_its_own(outputs: dict[str, Tensor], targets: Targets) -> Indices:
    own = torch.arange(len(targets[0]["labels"]))
    return [(own, own)]


def _places(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Of each box of a batch: its image, and its number there."""
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return image, torch.cat([torch.arange(count) for count in counts])
