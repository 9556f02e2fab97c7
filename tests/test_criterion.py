"""The losses against plain loops, official numbers and invariants."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from detectron2_ddetr.build import build_criterion
from detectron2_ddetr.modeling import HungarianMatcher, SetCriterion
from detectron2_ddetr.modeling.criterion import mean_num_boxes
from detectron2_ddetr.modeling.loss_task import per_box

from .conftest import FAMILY, small_cfg
from .fork_server import two_processes
from .modeling_cases import HEADS, NUM_CLASSES, small_features, small_head, small_targets
from .test_matcher import BOXES, LOGITS, TARGET, pair_cost, random_case

WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def focal_sum(logits, positives, alpha=0.25):
    """Sum over all (query, class); `positives` is a set of (query, class)."""
    total = 0.0
    for q, row in enumerate(logits.tolist()):
        for k, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            if (q, k) in positives:
                total += alpha * (1 - p) ** 2 * -math.log(p)
            else:
                total += (1 - alpha) * p**2 * -math.log(1 - p)
    return total


def leaves(outputs):
    return {name: x.clone().requires_grad_() for name, x in outputs.items()}


def without_targets(images):
    return [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}] * images


def test_official_numbers():
    """Parity I65, I70, PEERS 7.17: the worked example of the official code."""
    criterion = SetCriterion(HungarianMatcher())
    losses = criterion({"pred_logits": LOGITS[None], "pred_boxes": BOXES[None]}, [TARGET])
    expected = {"loss_ce": 0.960625, "loss_bbox": 0.075, "loss_giou": 0.233811}
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(WEIGHTS[name] * value, abs=5e-6)
    assert sum(losses.values()).item() == pytest.approx(2.763871, abs=1e-5)
    assert criterion.diagnostics["class_error"].item() == 0


@pytest.mark.parametrize("name", FAMILY)
def test_small_box(name):
    """
    A box of 2x2 pixels of 640x480, found exactly: 4 of 4.3072 square pixels in DAB and what comes
    from it, all of them elsewhere; in the cost that the matcher gives it too.
    """
    criterion = build_criterion(small_cfg(config=FAMILY[name]))
    giou = 4 / 4.3072 if name in ("dab", "dn", "dino") else 1.0
    logits, box = torch.zeros(1, 1, 4), torch.tensor([[[0.5, 0.5, 2 / 640, 2 / 480]]])
    target = {"labels": torch.zeros(1, dtype=torch.int64), "boxes": box[0]}
    losses = criterion({"pred_logits": logits, "pred_boxes": box}, [target])
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - giou), abs=1e-6)
    cost = criterion.matcher.cost(logits[0], box[0], target)
    of_class = criterion.matcher.class_cost_function(logits[0], target["labels"])
    of_box = cost - criterion.matcher.cost_class * of_class
    assert of_box.item() == pytest.approx(-2 * giou, abs=1e-6)


def test_no_targets():
    """Parity I65, I66, I70: the official numbers without targets; backward works."""
    criterion = SetCriterion(HungarianMatcher())
    outputs = leaves({"pred_logits": LOGITS[None], "pred_boxes": BOXES[None]})
    losses = criterion(outputs, without_targets(1))
    assert losses["loss_ce"].item() == pytest.approx(2 * 3.293266, abs=1e-5)
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    assert criterion.diagnostics["class_error"].item() == 100
    sum(losses.values()).backward()
    assert (outputs["pred_logits"].grad > 0).all()
    assert (outputs["pred_boxes"].grad == 0).all()


@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_loop(alpha):
    """Parity I65, I67: a plain sum over queries and classes, not a mean; alpha for positives."""
    outputs, targets = random_case(6, [3, 0, 4])
    criterion = SetCriterion(HungarianMatcher(), 3.0, 0.5, 7.0, focal_alpha=alpha)
    losses = criterion(outputs, targets)
    ce = bbox = giou = 0.0
    for i, (query_idx, target_idx) in enumerate(criterion.matcher(outputs, targets)):
        positives = set()
        for q, t in zip(query_idx.tolist(), target_idx.tolist()):
            box, target = outputs["pred_boxes"][i, q].tolist(), targets[i]["boxes"][t].tolist()
            positives.add((q, targets[i]["labels"][t].item()))
            bbox += sum(abs(a - b) for a, b in zip(box, target))
            giou += 1 + pair_cost([0.0], box, 0, target, (0, 0, 1))
        ce += focal_sum(outputs["pred_logits"][i], positives, alpha)
    expected = {"loss_ce": 3.0 * ce / 7, "loss_bbox": 0.5 * bbox / 7, "loss_giou": 7.0 * giou / 7}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value), name


def test_class_error():
    """Parity I70: the percentage of matched queries whose best class is wrong; not a loss."""
    centres = torch.tensor([[0.2, 0.4, 0.6, 0.9]])[..., None].expand(1, 4, 2)
    outputs = {
        "pred_logits": torch.tensor([[[3.0, 1, 0], [0, 2, 1], [1, 0, 0], [9, 0, 0]]]),
        "pred_boxes": torch.cat((centres, torch.full((1, 4, 2), 0.1)), -1),
    }
    targets = [{"labels": torch.tensor([0, 1, 2]), "boxes": outputs["pred_boxes"][0, :3]}]
    criterion = SetCriterion(HungarianMatcher(cost_bbox=1000.0))
    losses = criterion(outputs, targets)
    assert criterion.diagnostics["class_error"].item() == pytest.approx(100 / 3)
    assert all(name.startswith("loss_") for name in losses)


def test_perfect_boxes():
    """Box losses vanish where the boxes are right."""
    outputs, targets = random_case(6, [6, 6])
    outputs["pred_boxes"] = torch.stack([t["boxes"] for t in targets]).flip(1)
    losses = SetCriterion(HungarianMatcher(cost_class=0.0))(outputs, targets)
    for name in ("loss_bbox", "loss_giou"):
        assert_close(losses[name].item(), 0.0, rtol=0, atol=1e-12)


def test_order_of_queries_and_targets():
    """No order matters: of queries, of targets, of images."""
    outputs, targets = random_case(8, [3, 5])
    criterion = SetCriterion(HungarianMatcher())
    expected = criterion(outputs, targets)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = {name: x[:, order].flip(0) for name, x in outputs.items()}
    turned = [{name: x.flip(0) for name, x in t.items()} for t in reversed(targets)]
    for name, loss in criterion(shuffled, turned).items():
        assert_close(loss, expected[name])


def test_more_targets_than_queries():
    """Parity I63: Q of them are matched, all of them are counted."""
    outputs, targets = random_case(3, [7, 1])
    outputs = leaves(outputs)
    criterion = SetCriterion(HungarianMatcher())
    losses = criterion(outputs, targets)
    sum(losses.values()).backward()
    moved = outputs["pred_boxes"].grad.abs().sum(-1) > 0
    assert moved.sum(1).tolist() == [3, 1]
    # the L1 loss has weight 5 and all eight targets are counted
    only_l1 = SetCriterion(HungarianMatcher(), loss_giou_weight=0.0)
    again = leaves({name: x.detach() for name, x in outputs.items()})
    sum(only_l1(again, targets).values()).backward()
    slopes = again["pred_boxes"].grad.abs()
    assert_close(slopes[slopes > 0], torch.full((16,), 5 / 8, dtype=torch.float64))


@pytest.mark.parametrize(("counts", "expected"), [([3, 0, 4], 7.0), ([0, 0], 1.0), ([1, 0], 1.0)])
def test_num_boxes(counts, expected):
    """Parity I66: the count of the batch, at least 1."""
    outputs, targets = random_case(2, counts)
    boxes = sum(counts)
    assert per_box(mean_num_boxes(boxes, torch.device("cpu")), boxes).item() == expected
    criterion = SetCriterion(HungarianMatcher())
    whole = criterion(outputs, targets)
    criterion.batch_boxes = [3, 7]  # of a batch of which these are a part
    for name, loss in criterion(outputs, targets).items():
        assert_close(loss, whole[name] * expected / 10)


def _process(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for counts, mean in (((1, 4), 2.5), ((0, 1), 1.0), ((0, 0), 1.0), ((0, 6), 3.0)):
        outputs, targets = random_case(6, [counts[rank], 0], seed=rank)
        losses = SetCriterion(HungarianMatcher())(outputs, targets)
        local = max(1, counts[rank])
        for name, loss in SetCriterionAlone(HungarianMatcher())(outputs, targets).items():
            assert_close(losses[name], loss * local / mean)
    dist.destroy_process_group()


class SetCriterionAlone(SetCriterion):
    """Normalises by the boxes of its own process."""

    def forward(self, outputs, targets):
        num_boxes = torch.tensor(max(1.0, float(sum(len(t["labels"]) for t in targets))))
        task = self.tasks(outputs, targets)[0]
        losses = self.task_losses(task, *self.indices([task]), num_boxes)
        return {name: loss * self.weights[name] for name, loss in losses.items()}


def test_two_processes(tmp_path):
    """Parity I66: the mean over processes, also where one or all have no boxes."""
    two_processes(_process, str(tmp_path / "store"))


@pytest.mark.parametrize("variant", HEADS)
def test_every_layer(variant):
    """Parity I68, I69, PEERS 7.6, 7.7, 7.17: each layer weighted alike; the encoder's S tokens."""
    head = small_head(**HEADS[variant])
    with torch.no_grad():  # heads that start at zero would give all layers the same boxes
        for i, mlp in enumerate(head.bbox_embed):
            generator = torch.Generator().manual_seed(i)
            mlp.layers[-1].weight.copy_(torch.randn(4, 32, generator=generator))
    outputs = head(*small_features(HEADS[variant].get("num_levels", 4)))
    targets = small_targets()
    criterion = SetCriterion(HungarianMatcher(), 3.0, 4.0, 0.5)
    losses = criterion(outputs, targets)
    parts = {"": outputs, "_0": outputs["aux_outputs"][0], "_1": outputs["aux_outputs"][1]}
    if variant == "two_stage":
        parts["_enc"] = outputs["enc_outputs"]
        assert outputs["enc_outputs"]["pred_logits"].shape == (2, 9 * 13 + 5 * 7 + 3 * 4 + 4, 5)
    assert set(losses) == {name + suffix for name in WEIGHTS for suffix in parts}
    plain = SetCriterion(HungarianMatcher(), 1.0, 1.0, 1.0)
    for suffix, part in parts.items():
        labelled = targets
        if suffix == "_enc":
            labelled = [{**t, "labels": 0 * t["labels"]} for t in targets]
        own = {name: part[name] for name in ("pred_logits", "pred_boxes")}
        for name, loss in plain(own, labelled).items():
            weight = {"loss_ce": 3.0, "loss_bbox": 4.0, "loss_giou": 0.5}[name]
            assert_close(losses[name + suffix], weight * loss)
    assert all(t["labels"].any() for t in targets)  # those of the caller are left alone


def test_official_number_of_losses():
    """Parity I68: 21 weighted losses in two-stage models of six layers."""
    outputs, targets = random_case(5, [2, 1])
    outputs = {**outputs, "aux_outputs": [outputs] * 5, "enc_outputs": outputs}
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    suffixes = ["", "_0", "_1", "_2", "_3", "_4", "_enc"]
    assert set(losses) == {name + suffix for name in WEIGHTS for suffix in suffixes}
    assert_close(losses["loss_bbox_4"], losses["loss_bbox"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_confident_half(dtype):
    """Parity I72: float32 losses, finite at probability 0 and 1, for 16-bit predictions."""
    outputs, targets = random_case(6, [3, 2], dtype=dtype)
    outputs["pred_logits"] = outputs["pred_logits"].sign() * 100
    outputs = leaves(outputs)
    with torch.autocast("cpu", dtype):
        losses = SetCriterion(HungarianMatcher())(outputs, targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert losses["loss_ce"] > 1  # some confident query is wrong
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in outputs.values())
    full = SetCriterion(HungarianMatcher())({k: v.float() for k, v in outputs.items()}, targets)
    for name, loss in losses.items():
        assert_close(loss, full[name])


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_nan(name):
    """Parity I73, PEERS 7.15: a NaN reaches the loss and says which term; nothing crashes."""
    outputs, targets = random_case(4, [4, 2])
    outputs[name][0] = math.nan
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    broken = {key for key, loss in losses.items() if not loss.isfinite()}
    assert broken == ({"loss_ce"} if name == "pred_logits" else {"loss_bbox", "loss_giou"})


def test_gradient():
    """Parity I71: in float64, by finite differences."""
    outputs, targets = random_case(4, [2, 1], classes=NUM_CLASSES)
    criterion = SetCriterion(HungarianMatcher())

    def total(logits, boxes):
        losses = criterion({"pred_logits": logits, "pred_boxes": boxes}, targets)
        return sum(losses.values())

    assert torch.autograd.gradcheck(total, [x.requires_grad_() for x in outputs.values()])
