"""The set criterion: focal, L1 and generalised IoU losses of matched predictions, all layers."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from .box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from .loss_task import Indices, LossTask, Targets
from .matcher import HungarianMatcher
from .precision import at_least_float32, without_autocast
from .query_groups import QueryGroup
from .targets import check_targets


class SetCriterion(nn.Module):
    """
    Losses of DETR with the focal loss in place of cross-entropy (Sec. 5).

    What further groups of queries learn from is said by the groups (:class:`QueryGroup`). A
    variant with another class loss overrides :meth:`loss_ce` and :meth:`ce_normalizer`.
    """

    #: How many of the logits, the last, are of no class that a target has.
    num_background_classes = 0

    def __init__(
        self,
        matcher: HungarianMatcher,
        loss_ce_weight: float = 2.0,
        loss_bbox_weight: float = 5.0,
        loss_giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        giou_eps: float = 0.0,
    ):
        """
        Args:
            matcher: assigns queries to targets.
            loss_ce_weight, loss_bbox_weight, loss_giou_weight: of the losses that these names
                begin with, the same for every layer and for the encoder.
            focal_alpha: weight of positives in the focal loss, in [0, 1], or -1 for none; gamma
                is 2.
            giou_eps: of :func:`generalized_box_iou`.

        Raises:
            ValueError: for weights that are negative or not finite.
        """
        super().__init__()
        self.matcher = matcher
        self.weights = {
            "loss_ce": loss_ce_weight,
            "loss_bbox": loss_bbox_weight,
            "loss_giou": loss_giou_weight,
        }
        if not all(0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError(f"weights of losses must be at least 0, got {self.weights}")
        if not 0 <= focal_alpha <= 1 and focal_alpha != -1:
            raise ValueError(f"focal_alpha must be from 0 to 1, or -1, got {focal_alpha}")
        self.focal_alpha, self.giou_eps = focal_alpha, giou_eps
        #: How many boxes each image of this process's batch has, where it comes in parts, as in
        #: gradient accumulation: losses are divided by those of all parts. None where the targets
        #: are the whole batch.
        self.batch_boxes: list[int] | None = None
        # Differs from the official code: no cardinality error, because it counts a background class
        # that sigmoid heads do not have.
        #: Of the last call, detached: "class_error", the percentage of matched queries whose
        #: highest logit is not the class of their target. Not a loss.
        self.diagnostics: dict[str, Tensor] = {}

    def tasks(self, outputs: dict, targets: Targets) -> list[LossTask]:
        """
        Of each group the last layer first, then the earlier ones; then the encoder, as far as
        present.
        """
        tasks = []
        detecting = QueryGroup(outputs["pred_logits"].shape[1])
        for group, predictions in [(detecting, outputs), *outputs.get("train_groups", [])]:
            aux_outputs = predictions.get("aux_outputs", [])
            layers = {"": predictions, **{f"_{i}": aux for i, aux in enumerate(aux_outputs)}}
            for layer, of_layer in layers.items():
                suffix = group.suffix + layer
                tasks.append(group.supervise(suffix, of_layer, targets, self.matcher))
        if "interm_outputs" in outputs:
            tasks.append(LossTask("_enc", outputs["interm_outputs"], targets, self.matcher))
        if "enc_outputs" in outputs:
            # Proposals are class-agnostic: every target is class 0, the objectness channel.
            foreground = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
            tasks.append(LossTask("_enc", outputs["enc_outputs"], foreground, self.matcher))
        return tasks

    def forward(self, outputs: dict, targets: Targets) -> dict[str, Tensor]:
        """
        Args:
            outputs: as :class:`DeformableDETRHead` returns them.
            targets: per image "labels" (T_i,) int64 in [0, K) and "boxes" (T_i, 4),
                (cx, cy, w, h) in [0, 1] of the valid image, on the device of the outputs.

        Returns:
            dict: weighted scalars "loss_ce", "loss_bbox", "loss_giou" of the last layer, the same
            with "_0", "_1", ... of the earlier layers and "_enc" of the encoder. Before these
            numbers stands the suffix of a further group of queries, as in "loss_ce_dn_0". Their
            sum is the training loss.

        Raises:
            ValueError: for outputs and targets that do not fit, see :func:`check_targets`.
        """
        check_targets(outputs, targets, self.num_background_classes)
        boxes = sum(self.batch_boxes or [len(t["labels"]) for t in targets])
        mean_boxes = mean_num_boxes(boxes, outputs["pred_logits"].device)
        losses = {}
        # float32 whatever the context: the focal loss of a confident query underflows in 16 bits.
        with without_autocast(outputs["pred_logits"].device):
            tasks = self.tasks(outputs, targets)
            for task, indices in zip(tasks, self.indices(tasks)):
                num_boxes = task.normalizer(mean_boxes, boxes)
                for name, loss in self.task_losses(task, indices, num_boxes).items():
                    losses[name + task.suffix] = loss * (self.weights[name] * task.weight)
        return losses

    def indices(self, tasks: list[LossTask]) -> list[Indices]:
        """Who is matched with whom in each task; what the matcher matches, in one batch."""
        by_matcher = iter(self.matcher.match([t for t in tasks if t.matcher is self.matcher]))
        return [
            next(by_matcher) if t.matcher is self.matcher else t.matcher(t.outputs, t.targets)
            for t in tasks
        ]

    def task_losses(self, task: LossTask, indices: Indices, num_boxes: Tensor) -> dict[str, Tensor]:
        """Unweighted losses of one task."""
        logits = at_least_float32(task.outputs["pred_logits"])
        boxes = at_least_float32(task.outputs["pred_boxes"])

        device = logits.device
        image_idx = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(indices)])
        image_idx, query_idx = image_idx.to(device), torch.cat([q for q, _ in indices]).to(device)
        matched = [
            (t["labels"][j.to(device)], t["boxes"][j.to(device)])
            for t, (_, j) in zip(task.targets, indices)
        ]
        labels = torch.cat([label for label, _ in matched])
        target_boxes = torch.cat([box for _, box in matched]).to(boxes.dtype)
        of_matched = logits.detach()[image_idx, query_idx]
        self.diagnose(task, logits.detach(), of_matched.argmax(-1) != labels)
        loss_ce = self.loss_ce(logits, (image_idx, query_idx), labels)
        return {
            "loss_ce": loss_ce / self.ce_normalizer(task, num_boxes),
            **self.loss_boxes(boxes[image_idx, query_idx], target_boxes, num_boxes),
        }

    def loss_ce(self, logits: Tensor, matched: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """
        Sigmoid focal loss summed over all queries and classes; there is no background class.

        Args:
            logits: (N, Q, K).
            matched: image and query index of each matched query.
            labels: their classes.
        """
        one_hot = torch.zeros_like(logits)
        one_hot[(*matched, labels)] = 1.0
        return sigmoid_focal_loss(logits, one_hot, self.focal_alpha, gamma=2.0, reduction="sum")

    def ce_normalizer(self, task: LossTask, num_boxes: Tensor) -> Tensor | float:
        """What :meth:`loss_ce` is divided by; the losses of boxes are by `num_boxes`."""
        return num_boxes

    def diagnose(self, task: LossTask, logits: Tensor, wrong: Tensor) -> None:
        """
        Writes :attr:`diagnostics`.

        Args:
            logits: (N, Q, K), detached.
            wrong: (T,) bool, which matched queries predict another class than their target's.
        """
        if task.suffix == "":
            # 100 where there is nothing to match, as in the official logs.
            self.diagnostics["class_error"] = (
                100 * wrong.float().mean() if len(wrong) else logits.new_tensor(100.0)
            )

    def loss_boxes(
        self, boxes: Tensor, target_boxes: Tensor, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """L1 and generalised IoU losses of paired boxes, both (T, 4), (cx, cy, w, h)."""
        giou = generalized_box_iou(
            box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target_boxes), self.giou_eps
        )
        return {
            "loss_bbox": (boxes - target_boxes).abs().sum() / num_boxes,
            "loss_giou": (1 - giou).sum() / num_boxes,
        }


def mean_num_boxes(boxes: int, device: torch.device) -> Tensor:
    """`boxes` of this process, averaged over all processes; a scalar on `device`."""
    num_boxes = torch.tensor(float(boxes), dtype=torch.float32, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(num_boxes)
        num_boxes /= dist.get_world_size()
    return num_boxes
