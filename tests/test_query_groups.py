"""Groups of queries: who sees whom, and the queries of one-to-many matching."""

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    AnchorTransformer,
    HungarianMatcher,
    OneToMany,
    QueryGroup,
    SetCriterion,
    attention_mask,
)

from .modeling_cases import NUM_QUERIES, randomise, small_features, small_head, small_targets

SIZES = {"d_model": 32, "n_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 3,
         "dim_feedforward": 24, "dropout": 0.0}  # fmt: skip
MANY = OneToMany(num_queries=14, repeats=3, loss_weight=0.5)


def sees(groups, i, j):
    """Written out: query i of all attends to query j of all."""
    place = [(g, k * g.blocks // g.size) for g in groups for k in range(g.size)]
    (a, block_a), (b, block_b) = place[i], place[j]
    return (a is b and block_a == block_b) or (a is not b and b.suffix in a.sees)


@pytest.mark.parametrize(
    "groups",
    [
        [QueryGroup(12, "_dn", frozenset({""}), 3), QueryGroup(4)],
        [QueryGroup(4), QueryGroup(5, "_one2many")],
        [QueryGroup(4, "_dn", frozenset({""}), 2), QueryGroup(3), QueryGroup(5, "_one2many")],
        [QueryGroup(0, "_dn", frozenset({""}), 1), QueryGroup(3)],
    ],
)
def test_mask(groups):
    """True = blocked, row by row."""
    mask = attention_mask(groups)
    size = sum(group.size for group in groups)
    expected = [[not sees(groups, i, j) for j in range(size)] for i in range(size)]
    assert mask.tolist() == expected


def test_one_group_needs_no_mask():
    assert attention_mask([QueryGroup(4)]) is None


def hybrid(kind):
    parts = {"one_to_many": MANY}
    if kind == "anchors":
        transformer = AnchorTransformer(NUM_QUERIES + MANY.num_queries, **SIZES)
        return small_head(with_box_refine=True, transformer=transformer, parts=parts)
    return small_head(two_stage=kind == "two_stage", with_box_refine=True, parts=parts)


@pytest.mark.parametrize("kind", ["points", "two_stage", "anchors"])
def test_one_to_many(kind):
    """Targets three times over for the further queries; the others learn as if alone."""
    head = randomise(hybrid(kind), std=0.3).train()
    targets = small_targets((3, 2))
    outputs = head(*small_features())
    criterion = SetCriterion(HungarianMatcher())
    losses = criterion(outputs, targets)
    (group, many), = outputs["train_groups"]  # fmt: skip
    assert many["pred_logits"].shape[1] == 14 and outputs["pred_logits"].shape[1] == NUM_QUERIES
    alone = SetCriterion(HungarianMatcher())(
        {k: v for k, v in outputs.items() if k != "train_groups"}, targets
    )
    assert_close({k: losses[k] for k in alone}, alone)
    # The ordinary criterion on repeated targets, whose number divides.
    repeated = [{k: torch.cat((v, v, v)) for k, v in t.items()} for t in targets]
    expected = SetCriterion(HungarianMatcher())(many, repeated)
    names = {name: f"{name}_one2many" for name in ("loss_ce", "loss_bbox", "loss_giou")}
    names |= {f"{n}_{i}": f"{m}_{i}" for n, m in names.items() for i in range(2)}
    assert set(names.values()) == set(losses) - set(alone)
    for name, found in names.items():
        assert_close(losses[found], 0.5 * expected[name])
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", ["points", "two_stage", "anchors"])
def test_one_to_many_in_evaluation(kind):
    """The further queries are gone, and what is left is what it was in training."""
    head = randomise(hybrid(kind), std=0.3)
    with torch.no_grad():
        trained, evaluated = (head.train(mode)(*small_features()) for mode in (True, False))
    assert "train_groups" in trained and "train_groups" not in evaluated
    for key in ("pred_logits", "pred_boxes"):
        assert_close(trained[key], evaluated[key], rtol=0, atol=1e-5)


def test_fewer_tokens_than_queries():
    """Those that detect come first; the further ones get what is left, which may be nothing."""
    head = randomise(hybrid("two_stage"), std=0.3).train()
    for sizes, matching, many in (((64, 96), 9, 14), ((24, 40), 9, 9), ((8, 8), 4, 0)):
        outputs = head(*small_features(sizes=(sizes,)))
        tokens = outputs["enc_outputs"]["pred_logits"].shape[1]
        assert outputs["pred_logits"].shape[1] == min(matching, tokens)
        assert outputs["train_groups"][0][1]["pred_logits"].shape[1] == min(14, max(0, tokens - 9))
        losses = SetCriterion(HungarianMatcher())(outputs, small_targets((2,)))
        assert torch.stack(list(losses.values())).isfinite().all()
