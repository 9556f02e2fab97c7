"""The optimiser: parameter groups, one clip for the whole model, AdamW, and the schedule."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from detectron2_ddetr import build_optimizer, load_config
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_lr_scheduler, build_model

from .conftest import CONFIGS, VARIANTS

SIZES = {  # (tensors, values) per learning rate: SPEC 1.18
    "multi_scale": [(230, 15_824_735), (42, 23_232_512), (26, 790_018)],
    "refine": [(270, 16_604_730), (42, 23_232_512), (26, 790_018)],
    "two_stage": [(285, 16_937_113), (42, 23_232_512), (24, 789_504)],
    "single_scale": [(218, 10_413_791), (42, 23_232_512), (26, 197_890)],
}


def official_cfg(variant, *opts):
    path = str(CONFIGS / VARIANTS[variant])
    return load_config(path, ["MODEL.DEVICE", "meta", "MODEL.DETR.NUM_CLASSES", 91, *opts])


def meta_model(cfg):
    with torch.device("meta"):
        return build_model(cfg)


def kind(name):
    """0 the rest, 1 the backbone, 2 the layers that say where to sample; the official match."""
    if "backbone" in name:
        return 1
    return 2 if "sampling_offsets" in name or "reference_points" in name else 0


@pytest.mark.parametrize("variant", SIZES)
def test_groups(variant):
    """Parity K83; PEERS 7.2, 7.3: sizes, learning rates, decay; each parameter exactly once."""
    cfg = official_cfg(variant)
    model = meta_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = {}
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 1e-4
        assert group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8
        for parameter in group["params"]:
            assert parameter not in settings
            settings[parameter] = group["lr"]
    trainable = {p: n for n, p in model.named_parameters() if p.requires_grad}
    assert set(settings) == set(trainable)
    for k, (size, lr) in enumerate(zip(SIZES[variant], (2e-4, 2e-5, 2e-5))):
        members = [p for p, name in trainable.items() if kind(name) == k]
        assert (len(members), sum(p.numel() for p in members)) == size
        assert all(settings[p] == pytest.approx(lr, rel=1e-12) for p in members)


@pytest.mark.parametrize("key, k", [("BACKBONE_MULTIPLIER", 1), ("LINEAR_PROJ_MULTIPLIER", 2)])
def test_each_multiplier_moves_its_own_group(key, k):
    """PEERS 7.3."""
    cfg = official_cfg("multi_scale", f"SOLVER.{key}", 0.5)
    model = meta_model(cfg)
    names = {p: n for n, p in model.named_parameters()}
    for group in build_optimizer(cfg, model).param_groups:
        for parameter in group["params"]:
            own = kind(names[parameter])
            factor = 0.5 if own == k else (1.0 if own == 0 else 0.1)
            assert group["lr"] == pytest.approx(2e-4 * factor), names[parameter]


class Toy(nn.Module):
    """One parameter of each kind, and a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(3, 4)
        self.sampling_offsets = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(2)
        self.double()

    def set_gradients(self, scale, seed=1):
        generator = torch.Generator().manual_seed(seed)
        for i, p in enumerate(self.parameters()):
            p.grad = scale * 10.0**-i * torch.randn(p.shape, generator=generator).double()


def toy_optimizer(*opts):
    cfg = load_config(str(CONFIGS / VARIANTS["multi_scale"]), opts)
    model = Toy()
    return model, build_optimizer(cfg, model)


def total_norm(gradients):
    return math.sqrt(sum(float((g**2).sum()) for g in gradients))


@pytest.mark.parametrize("scale", [50.0, 1e-4])
def test_gradients_are_clipped_together(scale):
    """Parity K84: by the norm of the whole model, so that their ratios stay."""
    model, optimizer = toy_optimizer()
    model.set_gradients(scale)
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    after = [p.grad for p in model.parameters()]
    norm = total_norm(before)
    assert (norm > 0.1) == (scale == 50.0)
    assert total_norm(after) == pytest.approx(min(norm, 0.1), rel=1e-4)
    for old, new in zip(before, after):
        torch.testing.assert_close(new, old * min(1.0, 0.1 / norm), rtol=1e-4, atol=0)


def test_steps_equal_the_formula():
    """Parity K85: AdamW by hand (Loshchilov and Hutter, Algorithm 2) for three steps."""
    model, optimizer = toy_optimizer()
    lr = {"backbone": 2e-5, "sampling_offsets": 2e-5, "norm": 2e-4}
    names = [name for name, _ in model.named_parameters()]
    theta = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    m = {n: np.zeros_like(v) for n, v in theta.items()}
    v = {n: np.zeros_like(value) for n, value in theta.items()}
    for t in (1, 2, 3):
        model.set_gradients(scale=0.3 * t, seed=t)
        gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
        shrink = min(1.0, 0.1 / (total_norm(gradients.values()) + 1e-6))
        optimizer.step()
        for n in names:
            g = gradients[n] * shrink
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.999 * v[n] + 0.001 * g**2
            update = (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8)
            theta[n] -= lr[n.split(".")[0]] * (update + 1e-4 * theta[n])
    for n, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), theta[n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(bad):
    model, optimizer = toy_optimizer()
    model.set_gradients(1.0)
    optimizer.step()
    model.set_gradients(1.0, seed=2)
    model.norm.bias.grad[1] = bad
    before = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    with pytest.raises(FloatingPointError, match="gradient norm"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert all(map(torch.equal, moments, [s["exp_avg"] for s in optimizer.state.values()]))


def test_closure_and_parameters_without_gradient():
    model, optimizer = toy_optimizer()
    backbone = model.backbone.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = model.norm(model.sampling_offsets(torch.ones(1, 4).double())).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(2.0, rel=1e-2)
    assert torch.equal(model.backbone.weight, backbone)  # no gradient, hence no decay either
    assert model.norm.weight.grad is not None


def test_clipping_is_refused_unless_over_the_whole_model():
    """SPEC 0.7: detectron2's "norm" and "value" clip parameter by parameter."""
    for opts in (["CLIP_TYPE", "norm"], ["CLIP_TYPE", "value"], ["NORM_TYPE", 1.0]):
        with pytest.raises(InputError, match="full_model"):
            toy_optimizer(f"SOLVER.CLIP_GRADIENTS.{opts[0]}", opts[1])
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="CLIP_VALUE must be above 0"):
            toy_optimizer("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", value)


def test_without_a_clip():
    """PyTorch's AdamW to the bit, which a gradient that is not finite does not ruin."""
    model, optimizer = toy_optimizer("SOLVER.CLIP_GRADIENTS.ENABLED", False)
    other = deepcopy(model)
    groups = [
        {**group, "params": [other.get_parameter(name) for name in group["param_names"]]}
        for group in optimizer.param_groups
    ]
    peer = torch.optim.AdamW(groups)
    for seed in range(3):
        for m, o in ((model, optimizer), (other, peer)):
            m.set_gradients(1e3, seed=seed)
            o.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    model.norm.bias.grad[1] = math.nan
    with pytest.raises(FloatingPointError, match="gradient norm"):
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_scaled_losses_are_clipped_as_if_they_were_not():
    """GradScaler leaves the scale to optimisers that take it out; a clip before that is wrong."""
    (model, optimizer), (scaled, other) = toy_optimizer(), toy_optimizer()
    scaled.load_state_dict(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.zeros(()))  # makes the scale
    for seed in range(3):
        model.set_gradients(0.05, seed=seed)  # below the clip, and far above it when scaled
        optimizer.step()
        scaled.set_gradients(0.05, seed=seed)
        for parameter in scaled.parameters():
            parameter.grad *= scaler.get_scale()
        scaler.step(other)
        scaler.update()
    assert all(map(torch.equal, model.parameters(), scaled.parameters()))
    moments = [[s["exp_avg"] for s in o.state.values()] for o in (optimizer, other)]
    assert all(map(torch.equal, *moments))


def test_state_survives_saving():
    """The optimiser resumes to the bit."""
    (model, optimizer), (copy, resumed) = toy_optimizer(), toy_optimizer()
    model.set_gradients(1.0)
    optimizer.step()
    copy.load_state_dict(model.state_dict())
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (copy, resumed)):
        m.set_gradients(1.0, seed=5)
        o.step()
    assert all(map(torch.equal, model.parameters(), copy.parameters()))


def test_learning_rate_drops_after_40_epochs():
    """Parity K86: no warm-up, one drop by ten."""
    cfg = load_config(str(CONFIGS / VARIANTS["multi_scale"]))
    optimizer = build_optimizer(cfg, Toy())
    scheduler = build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    for iteration, factor in [(0, 1), (1, 1), (147_839, 1), (147_840, 0.1), (184_799, 0.1)]:
        if iteration > 0:
            scheduler.last_epoch = iteration - 1
            scheduler.step()
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        assert rates == pytest.approx([2e-5 * factor, 2e-4 * factor]), iteration


@pytest.mark.parametrize("variant", VARIANTS)
def test_number_of_iterations(variant):
    """Parity J82: 118 287 images in 16 chunks, in batches of two, of which the last is dropped."""
    cfg = load_config(str(CONFIGS / VARIANTS[variant]))
    images_per_process = -(-118_287 // 16)
    iterations = images_per_process // 2
    assert cfg.SOLVER.IMS_PER_BATCH == 16 * 2
    assert cfg.SOLVER.MAX_ITER == 50 * iterations == 184_800
    assert cfg.SOLVER.STEPS == (40 * iterations,) == (147_840,)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == iterations
