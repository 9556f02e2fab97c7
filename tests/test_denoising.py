"""Denoising queries: what the noise may do, that nothing leaks, and processes without boxes."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    AnchorTransformer,
    Denoising,
    DINOTransformer,
    Draws,
    HungarianMatcher,
    SetCriterion,
)

from .fork_server import two_processes
from .modeling_cases import (
    NUM_CLASSES,
    NUM_QUERIES,
    randomise,
    small_features,
    small_head,
    small_targets,
)

SIZES = {"d_model": 32, "n_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 3,
         "dim_feedforward": 24, "dropout": 0.0}  # fmt: skip
DN = {"negatives": False, "corner_noise": False, "indicator": True, "num_groups": 2}


def denoising(**kwargs):
    return Denoising(NUM_CLASSES, 32, **{"num_queries": 8, **kwargs})


def small(kind):
    """A head of each kind that can denoise."""
    parts = {"denoising": denoising(), "inverse_sigmoid_eps": 1e-3}
    if kind == "anchors":
        parts["denoising"] = denoising(**DN)
        transformer = AnchorTransformer(NUM_QUERIES, **SIZES)
    elif kind == "dino":
        transformer = DINOTransformer(NUM_QUERIES, **SIZES)
        parts["shared_heads"] = True
    else:
        mixed = kind == "mixed"
        return small_head(True, True, parts=parts, mixed_selection=mixed)
    return small_head(with_box_refine=True, transformer=transformer, parts=parts)


KINDS = ["two_stage", "mixed", "anchors", "dino"]


def _process(rank, path):
    """One of two; only the first has boxes."""
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for kind in KINDS:
        model = DistributedDataParallel(randomise(small(kind), std=0.3).train())
        targets = small_targets((3, 2) if rank == 0 else (0, 0))
        for _ in range(2):  # the second step fails where a parameter got no gradient
            outputs = model(*small_features(), targets)
            losses = SetCriterion(HungarianMatcher())(outputs, targets)
            model.zero_grad()
            sum(losses.values()).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        both = [torch.empty_like(gradients) for _ in range(2)]
        dist.all_gather(both, gradients)
        assert torch.equal(*both) and gradients.isfinite().all()
        names = [None, None]
        dist.all_gather_object(names, sorted(losses))
        assert names[0] == names[1] and "loss_ce_dn_0" in names[0]
    dist.destroy_process_group()


def test_a_process_without_boxes(tmp_path):
    """Two processes, one of which has none: no hang, no unused parameter, the same losses."""
    two_processes(_process, str(tmp_path / "store"))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaks(kind):
    """What detects gives the same whatever the targets are, and as in evaluation."""
    head = randomise(small(kind), std=0.3).train()
    features = small_features()
    with torch.no_grad():
        runs = [head(*features, small_targets(c, seed=s)) for s, c in ((0, (3, 2)), (1, (1, 5)))]
        runs += [head(*features), head.eval()(*features, small_targets())]
    assert [len(run.get("train_groups", [])) for run in runs] == [1, 1, 0, 0]
    for run in runs[1:]:
        for key in ("pred_logits", "pred_boxes"):
            assert_close(run[key], runs[0][key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_denoising_queries_see_those_that_detect(kind):
    """And their own group; not other groups."""
    head = randomise(small(kind), std=0.3).train()
    with torch.no_grad():
        head.denoising.label_enc.weight[1:] = head.denoising.label_enc.weight[0]
    head.denoising.label_noise = head.denoising.box_noise = 0
    outputs = head(*small_features(), small_targets((2, 2)))
    (group, dn), = outputs["train_groups"]  # fmt: skip
    blocks = dn["pred_boxes"].chunk(group.blocks, dim=1)
    for block in blocks[1:]:  # equal groups that do not see each other give equal boxes
        assert_close(block, blocks[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("counts, num_groups", [((3, 2), 2), ((8, 1), 1), ((9, 0), 1), ((1, 1), 8)])
def test_number_of_groups(counts, num_groups):
    """As many as 8 queries for the fullest image take, at least one; or a fixed number."""
    content, references, group = denoising()(small_targets(counts))
    assert group.blocks == num_groups
    assert group.size == 2 * num_groups * max(counts)  # positives and negatives
    assert content.shape == (2, group.size, 32) and references.shape == (2, group.size, 4)
    fixed = denoising(num_groups=3)(small_targets(counts))[2]
    assert (fixed.blocks, fixed.size) == (3, 6 * max(counts))


def corners(boxes):
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def test_corner_noise():
    """Positives move by up to half the box, negatives by half to the whole, each corner so."""
    module = denoising(box_noise=0.8)
    boxes = torch.tensor([[0.5, 0.4, 0.1, 0.2]]).repeat(4000, 1)
    moved = corners(module.noised_boxes(boxes, 1)) - corners(boxes)
    share = (moved / torch.tensor([0.05, 0.1, 0.05, 0.1]) / 0.8).abs()
    positive, negative = share[::2], share[1::2]
    assert positive.max() <= 1 + 1e-4 and positive.min() < 0.01 and positive.max() > 0.99
    assert negative.max() <= 2 + 1e-4 and negative.min() >= 1 - 1e-4
    assert_close(positive.mean(0), torch.full((4,), 0.5), rtol=0, atol=0.03)
    assert (moved > 0).float().mean(0).sub(0.5).abs().max() < 0.05


def test_centre_noise():
    """The centre moves by up to half the box, the size by up to itself; all stay in the image."""
    module = denoising(**DN, box_noise=0.4)
    boxes = torch.tensor([[0.5, 0.4, 0.1, 0.2]]).repeat(4000, 1)
    moved = (module.noised_boxes(boxes, 1) - boxes) / torch.tensor([0.05, 0.1, 0.1, 0.2]) / 0.4
    assert moved.abs().max() <= 1 + 1e-4
    assert_close(moved.abs().mean(0), torch.full((4,), 0.5), rtol=0, atol=0.03)
    at_the_border = torch.tensor([[0.99, 0.01, 1.0, 1.0]]).repeat(500, 1)
    noised = module.noised_boxes(at_the_border, 1)
    assert noised.min() >= 0 and noised.max() <= 1


def test_label_noise():
    """A share of the labels is drawn from all classes."""
    labels = torch.full((20000,), 2)
    module = denoising(label_noise=0.3)
    noised = module.noised_labels(labels)
    shares = torch.bincount(noised, minlength=NUM_CLASSES) / len(labels)
    expected = torch.full((NUM_CLASSES,), 0.3 / NUM_CLASSES)
    expected[2] += 0.7
    assert_close(shares, expected, rtol=0, atol=0.02)
    assert torch.equal(denoising(label_noise=0).noised_labels(labels), labels)


def test_contrastive_losses():
    """Positives restore their target; negatives and empty slots are background."""
    module, targets = denoising(num_groups=2), small_targets((3, 1))
    _, _, group = module(targets)
    generator = torch.Generator().manual_seed(3)
    outputs = {
        "pred_logits": torch.randn(2, 12, NUM_CLASSES, generator=generator),
        "pred_boxes": torch.rand(2, 12, 4, generator=generator),
    }
    none = {"pred_logits": torch.zeros(2, 1, NUM_CLASSES), "pred_boxes": torch.rand(2, 1, 4)}
    losses = SetCriterion(HungarianMatcher(), 1.0)(
        {**none, "train_groups": [(group, outputs)]}, targets
    )
    probability = outputs["pred_logits"].double().sigmoid()
    focal = 0.75 * probability**2 * -(1 - probability).log()
    l1 = 0.0
    for image, start, t in [(0, s, t) for s in (0, 6) for t in range(3)] + [(1, 0, 0), (1, 6, 0)]:
        label, query = targets[image]["labels"][t], start + t
        p = probability[image, query, label]
        focal[image, query, label] = 0.25 * (1 - p) ** 2 * -p.log()
        l1 += (outputs["pred_boxes"][image, query] - targets[image]["boxes"][t]).abs().sum()
    assert_close(losses["loss_ce_dn"].double(), focal.sum() / (4 * 2), rtol=1e-5, atol=0)
    assert_close(losses["loss_bbox_dn"], 5 * l1 / (4 * 2))


def test_losses_without_negatives():
    """Only noised targets count, divided by their number."""
    module, targets = denoising(**DN), small_targets((3, 1))
    _, _, group = module(targets)
    generator = torch.Generator().manual_seed(3)
    outputs = {
        "pred_logits": torch.randn(2, 6, NUM_CLASSES, generator=generator),
        "pred_boxes": torch.rand(2, 6, 4, generator=generator),
    }
    none = {"pred_logits": torch.zeros(2, 1, NUM_CLASSES), "pred_boxes": torch.rand(2, 1, 4)}
    losses = SetCriterion(HungarianMatcher(), 1.0)(
        {**none, "train_groups": [(group, outputs)]}, targets
    )
    focal, l1 = 0.0, 0.0
    for image, query, t in [(0, s + t, t) for s in (0, 3) for t in range(3)] + [
        (1, 0, 0),
        (1, 3, 0),
    ]:
        p = outputs["pred_logits"][image, query].double().sigmoid()
        of_class = 0.75 * p**2 * -(1 - p).log()
        label = targets[image]["labels"][t]
        of_class[label] = 0.25 * (1 - p[label]) ** 2 * -p[label].log()
        focal += of_class.sum()
        l1 += (outputs["pred_boxes"][image, query] - targets[image]["boxes"][t]).abs().sum()
    assert_close(losses["loss_ce_dn"].double(), focal / 8, rtol=1e-5, atol=0)
    assert_close(losses["loss_bbox_dn"], 5 * l1 / 8)


def test_indicator():
    """The last channel tells denoising queries from others, in training and in evaluation."""
    head = small("anchors")
    seen = []
    head.transformer.decoder.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    head.train()(*small_features(), small_targets((3, 2)))
    head.eval()(*small_features())
    bits, none = seen[0].content[..., -1], seen[1].content[..., -1]
    assert bits[0].tolist() == [1] * 6 + [0] * NUM_QUERIES
    assert bits[1].tolist() == [1, 1, 0] * 2 + [0] * NUM_QUERIES  # an empty slot has none
    assert not none.any()


def test_generator():
    """The same seed gives the same queries, whatever PyTorch's own generator does."""
    targets, module = small_targets((3, 2)), denoising()
    made = []
    for seed in (7, 7, 8):
        module.draws = Draws(torch.Generator().manual_seed(seed))
        made.append(module(targets)[1])
        torch.rand(1)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_queries": 0}, "num_queries"),
        ({"num_groups": 0}, "num_groups"),
        ({"label_noise": 1.1}, "label_noise"),
        ({"box_noise": -0.1}, "box_noise"),
        ({"corner_noise": False}, "corners"),
    ],
)
def test_numbers_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        denoising(**arguments)


def test_queries_that_start_from_points():
    """A noised box cannot be one of them."""
    head = small_head(with_box_refine=True, parts={"denoising": denoising()}).train()
    with pytest.raises(ValueError, match="points"):
        head(*small_features(), small_targets())
