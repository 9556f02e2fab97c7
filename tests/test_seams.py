"""Each relative of Deformable DETR that we name is a small subclass that trains end to end."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    HungarianMatcher,
    LossTask,
    QuerySet,
    SetCriterion,
    TwoStageDeformableTransformer,
    box_position_encoding,
)
from detectron2_ddetr.modeling.box_ops import shift_box

from .modeling_cases import NUM_QUERIES, randomise, small_features, small_head, small_targets

SIZES = {"d_model": 32, "n_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 3,
         "dim_feedforward": 24, "dropout": 0.0}  # fmt: skip


def train(head, criterion=None):
    """Forward, loss and backward; every parameter is used and everything is finite."""
    randomise(head, std=0.3).train()
    outputs = head(*small_features())
    losses = (criterion or SetCriterion(HungarianMatcher()))(outputs, small_targets())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return outputs, losses


class AnchorTransformer(DeformableTransformer):
    """Learned boxes in place of points; their encoding is part of the position."""

    def make_query_layers(self):
        self.reference_points = nn.Linear(self.d_model, 4)  # from the position to a box

    def initial_queries(self, memory, query_embed, score_tokens):
        queries = super().initial_queries(memory, query_embed, score_tokens)
        encoded = box_position_encoding(queries.reference_points, self.d_model // 4)
        return QuerySet(queries.content, queries.query_pos + encoded, queries.reference_points)


class LearnedContentTransformer(TwoStageDeformableTransformer):
    """References and positions from the encoder, content learned."""

    def make_query_layers(self):
        super().make_query_layers()
        self.content = nn.Parameter(torch.zeros(1, NUM_QUERIES, self.d_model))

    def initial_queries(self, memory, query_embed, score_tokens):
        queries = super().initial_queries(memory, query_embed, score_tokens)
        queries.content = self.content.expand_as(queries.content)
        return queries


def test_second_query_source():
    """Seam S8: anchors instead of points; learned content on proposals."""
    head = small_head(with_box_refine=True, transformer=AnchorTransformer(**SIZES))
    outputs, _ = train(head)
    assert outputs["pred_boxes"].shape == (2, NUM_QUERIES, 4)
    transformer = LearnedContentTransformer(num_queries=NUM_QUERIES, **SIZES)
    _, losses = train(small_head(True, with_box_refine=True, transformer=transformer))
    assert "loss_ce_enc" in losses and transformer.content.grad.any()


class SoftmaxCriterion(SetCriterion):
    """Cross-entropy with the last channel as background, as in DETR."""

    def loss_ce(self, logits, matched, labels):
        target = torch.full(logits.shape[:2], logits.shape[2] - 1)
        target[matched] = labels
        weight = torch.ones(logits.shape[2])
        weight[-1] = 0.1
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, reduction="sum")


def softmax_cost(logits, labels):
    return -logits.softmax(-1)[:, labels]


def test_second_class_loss():
    """Seams S12, S13: a softmax loss and its cost, in every layer."""
    criterion = SoftmaxCriterion(HungarianMatcher(1.0, class_cost_function=softmax_cost), 1.0)
    outputs, losses = train(small_head(), criterion)
    logits = outputs["aux_outputs"][0]["pred_logits"].double().log_softmax(-1)
    targets = small_targets()
    expected = -0.1 * logits[..., -1].sum()
    for i, (q, t) in enumerate(criterion.matcher(outputs["aux_outputs"][0], targets)):
        label = targets[i]["labels"][t]
        weight = torch.where(label == 4, 0.1, 1.0)
        expected += 0.1 * logits[i, q, -1].sum() - (weight * logits[i, q, label]).sum()
    assert_close(losses["loss_ce_0"].double(), expected / 5, rtol=1e-4, atol=1e-4)


class LookForwardTwice(DeformableDETRHead):
    """The boxes of a layer also correct the layer before; what is looked around is detached."""

    def update_reference(self, layer, query, reference_points):
        before = reference_points if layer == 0 else self.attached
        delta = self.bbox_embed[layer](query).float()
        self.attached = shift_box(delta, reference_points, self.inverse_sigmoid_eps)
        boxes = shift_box(delta, before, self.inverse_sigmoid_eps)
        return boxes, self.attached.detach()


def test_second_reference_update():
    """Seam S10: the same boxes, but the second layer's loss reaches the first layer's head."""
    gradients, boxes = {}, {}
    for cls in (DeformableDETRHead, LookForwardTwice):
        head = small_head(with_box_refine=True, cls=cls)
        train(head)
        head.zero_grad()
        outputs = head(*small_features())
        outputs["aux_outputs"][1]["pred_boxes"].sum().backward()
        gradients[cls], boxes[cls] = head.bbox_embed[0].layers[2].bias.grad, outputs["pred_boxes"]
    assert gradients[DeformableDETRHead] is None
    assert gradients[LookForwardTwice].any()
    assert_close(*boxes.values())


class TwoGroupTransformer(DeformableTransformer):
    """In training a second group of queries, which the first neither sees nor is seen by."""

    extra = 14

    def make_query_layers(self):
        super().make_query_layers()
        self.extra_embed = nn.Embedding(self.extra, 2 * self.d_model)

    def initial_queries(self, memory, query_embed, score_tokens):
        if not self.training:
            return super().initial_queries(memory, query_embed, score_tokens)
        both = torch.cat((query_embed, self.extra_embed.weight))
        queries = super().initial_queries(memory, both, score_tokens)
        group = torch.arange(len(both)) < len(query_embed)
        queries.attn_mask = group[:, None] != group
        return queries


class TwoGroupCriterion(SetCriterion):
    """The second group is matched with every target repeated."""

    def tasks(self, outputs, targets):
        layers = [outputs, *outputs["aux_outputs"]]
        main, extra = (
            [{k: layer[k][:, part] for k in ("pred_logits", "pred_boxes")} for layer in layers]
            for part in (slice(NUM_QUERIES), slice(NUM_QUERIES, None))
        )
        tasks = super().tasks({**main[0], "aux_outputs": main[1:]}, targets)
        repeated = [{k: torch.cat([v] * 3) for k, v in t.items()} for t in targets]
        return tasks + [
            LossTask(f"_many{task.suffix}", layer, repeated, self.matcher)
            for task, layer in zip(tasks, extra)
        ]


def test_query_group():
    """Seams S8, S13: a group with its own attention mask and its own task, absent in evaluation."""
    transformer = TwoGroupTransformer(**SIZES)
    head = small_head(with_box_refine=True, transformer=transformer)
    criterion = TwoGroupCriterion(HungarianMatcher())
    outputs, losses = train(head, criterion)
    assert outputs["pred_boxes"].shape == (2, NUM_QUERIES + 14, 4)
    names = [f"loss_{n}{many}{i}" for n in ("ce", "bbox", "giou") for many in ("", "_many")
             for i in ("", "_0", "_1")]  # fmt: skip
    assert set(losses) == set(names)
    first = {k: outputs[k][:, :NUM_QUERIES] for k in ("pred_logits", "pred_boxes")}
    plain = SetCriterion(HungarianMatcher())(first, small_targets())
    assert_close({k: losses[k] for k in plain}, plain)
    evaluated = head.eval()(*small_features())["pred_boxes"]
    assert_close(evaluated, first["pred_boxes"], rtol=0, atol=1e-5)
