"""Each relative of Deformable DETR that we name is a small subclass that trains end to end."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    DeformableTransformer,
    HungarianMatcher,
    QuerySet,
    SetCriterion,
    TwoStageDeformableTransformer,
    box_position_encoding,
)

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

    def initial_queries(self, memory, query_embed, heads, num_extra=0):
        queries = super().initial_queries(memory, query_embed, heads, num_extra)
        encoded = box_position_encoding(queries.reference_points, self.d_model // 4)
        return QuerySet(queries.content, queries.query_pos + encoded, queries.reference_points)


class LearnedContentTransformer(TwoStageDeformableTransformer):
    """References and positions from the encoder, content learned."""

    def make_query_layers(self):
        super().make_query_layers()
        self.content = nn.Parameter(torch.zeros(1, NUM_QUERIES, self.d_model))

    def initial_queries(self, memory, query_embed, heads, num_extra=0):
        queries = super().initial_queries(memory, query_embed, heads, num_extra)
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


def test_second_reference_update():
    """Seam S10: the same boxes, but the second layer's loss reaches the first layer's head."""
    gradients, boxes = {}, {}
    for twice in (False, True):
        head = small_head(with_box_refine=True, parts={"look_forward_twice": twice})
        train(head)
        head.zero_grad()
        outputs = head(*small_features())
        outputs["aux_outputs"][1]["pred_boxes"].sum().backward()
        gradients[twice], boxes[twice] = (
            head.bbox_embed[0].layers[2].bias.grad,
            outputs["pred_boxes"],
        )
        head.zero_grad()
        head(*small_features())["pred_boxes"].sum().backward()
        assert head.bbox_embed[0].layers[2].bias.grad is None  # one layer back, no further
    assert gradients[False] is None
    assert gradients[True].any()
    assert_close(*boxes.values())


class BlindPair(DeformableTransformer):
    """Queries of a group that a user makes: they do not see those that detect."""

    def initial_queries(self, memory, query_embed, heads, num_extra=0):
        queries = super().initial_queries(memory, query_embed, heads, num_extra)
        group = torch.arange(NUM_QUERIES) < 3
        queries.attn_mask = group[:, None] != group
        return queries


def test_attention_mask_of_a_query_source():
    """Seam S9: a mask of the query source is kept, and hides what it says."""
    head = randomise(small_head(transformer=BlindPair(**SIZES)), std=0.3)
    features = small_features()
    before = head(*features)["pred_boxes"]
    with torch.no_grad():
        head.query_embed.weight[3:] += 1
    after = head(*features)["pred_boxes"]
    assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-3


class LearnedPositions(nn.Module):
    """A learned position for each row and column that is not padding."""

    def __init__(self, channels):
        super().__init__()
        self.rows, self.columns = nn.Embedding(50, channels), nn.Embedding(50, channels)

    def forward(self, padding_mask):
        valid = ~padding_mask
        y, x = (valid.cumsum(axis) - 1 for axis in (1, 2))
        positions = self.rows(y.clamp(min=0)) + self.columns(x.clamp(min=0))
        return positions.permute(0, 3, 1, 2)


def test_another_position_encoding():
    """It is given the mask and nothing else, of images with padding and without."""
    parts = {"position_embedding": LearnedPositions(SIZES["d_model"])}
    head = randomise(small_head(transformer=DeformableTransformer(**SIZES), parts=parts), std=0.3)
    train(head)
    features, mask = small_features(sizes=((61, 83), (61, 83)))
    assert not mask.any()
    assert_close(head(features, None)["pred_boxes"], head(features, mask)["pred_boxes"])
