"""The assignment against all permutations, the cost against plain arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from detectron2_ddetr.modeling import HungarianMatcher, LossTask, SetCriterion
from detectron2_ddetr.modeling import criterion as criterion_module
from detectron2_ddetr.modeling import matcher as matcher_module
from detectron2_ddetr.modeling.query_groups import OneToMany

#: The worked example of the official code.
LOGITS = torch.tensor([[0.5, -1, 2], [-2, 0, 1], [1.5, 0.3, -0.7], [-3, -3, -3]])
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.2, 0.4], [0.7, 0.6, 0.3, 0.2],
                      [0.1, 0.1, 0.1, 0.1]])  # fmt: skip
TARGET = {
    "labels": torch.tensor([2, 0]),
    "boxes": torch.tensor([[0.32, 0.42, 0.2, 0.36], [0.68, 0.61, 0.32, 0.22]]),
}
COST = torch.tensor([[-0.027236, 2.006874], [-2.109531, 6.368488], [5.368714, -2.949258],
                     [7.077080, 10.229178]])  # fmt: skip


def random_case(queries, counts, classes=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    outputs = {
        "pred_logits": (6 * rand(len(counts), queries, classes) - 4).to(dtype),
        "pred_boxes": (0.1 + 0.4 * rand(len(counts), queries, 4)).to(dtype),
    }
    targets = [
        {
            "labels": torch.randint(classes, (count,), generator=generator),
            "boxes": 0.1 + 0.4 * rand(count, 4),
        }
        for count in counts
    ]
    return outputs, targets


def pair_cost(logits, box, label, target, weights=(2, 5, 2)):
    """Class, L1 and generalised IoU of one pair, in plain Python."""
    p = 1 / (1 + math.exp(-logits[label]))
    cls = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    l1 = sum(abs(a - b) for a, b in zip(box, target))
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (box, target)
    )
    both = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = box[2] * box[3] + target[2] * target[3] - both
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return weights[0] * cls + weights[1] * l1 - weights[2] * (both / union - (hull - union) / hull)


def best_total(cost):
    """The smallest total over all ways to pair the shorter axis with the longer."""
    cost = cost if len(cost) <= len(cost[0]) else list(zip(*cost))
    return min(
        sum(row[column] for row, column in zip(cost, columns))
        for columns in itertools.permutations(range(len(cost[0])), len(cost))
    )


def test_official_numbers():
    """Parity I62, PEERS 7.17: the cost matrix and the assignment of the official code."""
    matcher = HungarianMatcher()
    assert_close(matcher.cost(LOGITS, BOXES, TARGET), COST, rtol=0, atol=2e-5)
    outputs = {"pred_logits": LOGITS[None], "pred_boxes": BOXES[None]}
    ((query_idx, target_idx),) = matcher(outputs, [TARGET])
    assert query_idx.tolist() == [1, 2] and target_idx.tolist() == [0, 1]


@pytest.mark.parametrize("weights", [(2, 5, 2), (0.5, 3, 11)])
def test_cost_loop(weights):
    """Parity I62: each pair by plain arithmetic, each weight with its own term."""
    outputs, (target,) = random_case(5, [3])
    logits, boxes = outputs["pred_logits"][0], outputs["pred_boxes"][0]
    cost = HungarianMatcher(*weights).cost(logits, boxes, target)
    assert cost.shape == (5, 3)
    pairs = list(zip(target["labels"].tolist(), target["boxes"].tolist()))
    expected = [
        [pair_cost(x, b, label, box, weights) for label, box in pairs]
        for x, b in zip(logits.tolist(), boxes.tolist())
    ]
    assert_close(cost, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(25))
def test_brute_force(seed):
    """Parity I63: the best of all assignments; fewer, as many and more targets than queries."""
    counts = [(seed + i) % 7 for i in range(4)]
    outputs, targets = random_case(2 + seed % 4, counts, seed=seed)
    indices = HungarianMatcher()(outputs, targets)
    for logits, boxes, target, (query_idx, target_idx) in zip(
        outputs["pred_logits"], outputs["pred_boxes"], targets, indices
    ):
        count = min(len(boxes), len(target["labels"]))
        assert len(query_idx) == len(set(query_idx.tolist())) == count
        assert len(target_idx) == len(set(target_idx.tolist())) == count
        assert query_idx.tolist() == sorted(query_idx.tolist())
        assert query_idx.dtype == target_idx.dtype == torch.int64
        if count:
            cost = [
                [pair_cost(x, b, label, box) for label, box in
                 zip(target["labels"].tolist(), target["boxes"].tolist())]
                for x, b in zip(logits.tolist(), boxes.tolist())
            ]  # fmt: skip
            total = sum(cost[q][t] for q, t in zip(query_idx.tolist(), target_idx.tolist()))
            assert total == pytest.approx(best_total(cost))


def test_batch_is_one_by_one():
    """Parity I63: images do not see each other, with an empty one between them."""
    outputs, targets = random_case(7, [3, 0, 9, 1])
    matcher = HungarianMatcher()
    for i, (query_idx, target_idx) in enumerate(matcher(outputs, targets)):
        alone = matcher({k: v[i : i + 1] for k, v in outputs.items()}, targets[i : i + 1])[0]
        assert query_idx.tolist() == alone[0].tolist()
        assert target_idx.tolist() == alone[1].tolist()


def test_nothing_to_match():
    """Parity I63: a batch without any target."""
    for query_idx, target_idx in HungarianMatcher()(*random_case(4, [0, 0])):
        assert query_idx.numel() == target_idx.numel() == 0
        assert query_idx.dtype == target_idx.dtype == torch.int64


def test_class_cost_is_its_own():
    """Parity I64: alpha of the loss does not change the cost; another cost can be given."""
    criterion = SetCriterion(HungarianMatcher(), focal_alpha=0.9)
    assert_close(criterion.matcher.cost(LOGITS, BOXES, TARGET), COST, rtol=0, atol=2e-5)
    matcher = HungarianMatcher(
        3, 0, 0, class_cost_function=lambda logits, labels: -logits[:, labels]
    )
    assert_close(matcher.cost(LOGITS, BOXES, TARGET), -3 * LOGITS[:, [2, 0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    """Parity I72: confident 16-bit predictions cost what the same float32 ones cost."""
    outputs, targets = random_case(6, [4], dtype=dtype)
    outputs["pred_logits"][0, :3] = torch.tensor([100.0, -100, 100, -100])
    matcher = HungarianMatcher()
    with torch.autocast("cpu", dtype):
        half = matcher(outputs, targets)[0]
    full = matcher({k: v.float() for k, v in outputs.items()}, targets)[0]
    assert half[0].tolist() == full[0].tolist() and half[1].tolist() == full[1].tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_not_finite(name, bad):
    """Parity I73, PEERS 7.15: no crash, still one query each, finite queries first."""
    outputs, targets = random_case(5, [3, 2])
    good = HungarianMatcher()(outputs, targets)
    outputs[name][0, [1, 3]] = bad
    indices = HungarianMatcher()(outputs, targets)
    assert [len(set(q.tolist())) for q, _ in indices] == [3, 2]
    assert indices[1][0].tolist() == good[1][0].tolist()
    if name == "pred_boxes" or math.isnan(bad):
        assert indices[0][0].tolist() == [0, 2, 4]


def tied_step(matcher):
    """
    Three layers and a larger group whose targets count three times, then a layer with targets of
    its own. Logits and boxes are of few whole eighths: costs are exact, and many are equal.
    """
    generator = torch.Generator().manual_seed(0)

    def eighths(*shape):
        return torch.randint(1, 4, shape, generator=generator) / 8

    def targets(counts):
        labels = [torch.randint(2, (count,), generator=generator) for count in counts]
        return [{"labels": x, "boxes": eighths(len(x), 4)} for x in labels]

    def task(queries, targets, repeats=1):
        outputs = {"pred_logits": eighths(3, queries, 2), "pred_boxes": eighths(3, queries, 4)}
        return LossTask("", outputs, targets, matcher, repeats=repeats)

    of_all, other = targets([5, 0, 12]), targets([4, 2, 1])
    return [*(task(9, of_all) for _ in range(3)), task(20, of_all, 3), task(9, other)]


@pytest.mark.parametrize("pairs", [1, 30, 2**17])
def test_a_step_is_one_by_one(pairs, monkeypatch):
    """All layers and groups at once, in parts of any size: scipy's answer for each, ties too."""
    monkeypatch.setattr(matcher_module, "_PAIRS_AT_A_TIME", pairs)
    matcher = HungarianMatcher(2, 8, 0, lambda logits, labels: -logits[:, labels])
    tasks = tied_step(matcher)
    ties = 0
    for task, indices in zip(tasks, matcher.match(tasks)):
        assert len(indices) == 3
        for i, (target, (query_idx, target_idx)) in enumerate(zip(task.targets, indices)):
            boxes, logits = (task.outputs[k][i].numpy() for k in ("pred_boxes", "pred_logits"))
            labels, count = target["labels"].numpy(), len(target["labels"])
            l1 = np.abs(boxes[:, None] - target["boxes"].numpy()).sum(-1)
            cost = np.concatenate([8 * l1 - 2 * logits[:, labels]] * task.repeats, axis=1)
            queries, targets = linear_sum_assignment(cost)
            assert query_idx.tolist() == queries.tolist()
            assert target_idx.tolist() == [j % count for j in targets]
            assert query_idx.dtype == target_idx.dtype == torch.int64
            ties += cost.size - len(np.unique(cost))
    assert ties > 500


def test_one_transfer_and_one_check_a_step(monkeypatch):
    """Of a step with three layers, two groups and an encoder: what waits for a GPU, and checks."""
    calls = []
    cpu, check = torch.Tensor.cpu, matcher_module.check_targets

    def counted(*arguments):
        calls.append("check")
        return check(*arguments)

    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: calls.append("transfer") or cpu(x))
    for module in (matcher_module, criterion_module):
        monkeypatch.setattr(module, "check_targets", counted)
    outputs, targets = random_case(7, [3, 0, 9])
    layers = {**outputs, "aux_outputs": [outputs, outputs]}
    group = OneToMany(7, repeats=2).group(7)
    step = {**layers, "train_groups": [(group, layers)], "enc_outputs": outputs}
    losses = SetCriterion(HungarianMatcher())(step, targets)
    assert len(losses) == 3 * (3 + 3 + 1)
    assert calls == ["check", "transfer"]
