"""Rates, metrics and state of a training: those of detectron2 and of the embedded host."""

from types import SimpleNamespace

import pytest
import torch

from detectron2_ddetr.host import config as host_config
from detectron2_ddetr.host import engine, hooks, solver

from .test_toolbox import needs_detectron2

SOLVERS = [
    {"STEPS": (30, 40, 60), "WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.1, "GAMMA": 0.5},
    {"WARMUP_ITERS": 0, "STEPS": (25,)},
    {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.0001, "WARMUP_ITERS": 5},
]


@needs_detectron2
@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.filterwarnings("ignore")
def test_learning_rates(options):
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    curves = []
    for make, build in (
        (host_config.get_cfg, solver.build_lr_scheduler),
        (get_cfg, build_lr_scheduler),
    ):
        cfg = make()
        cfg.SOLVER.MAX_ITER = 50
        for key, value in options.items():
            cfg.SOLVER[key] = value
        parameters = [{"params": [torch.zeros(1)], "lr": lr} for lr in (0.1, 0.03)]
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        scheduler, curve = build(cfg, optimizer), []
        for _ in range(49):
            curve.append([group["lr"] for group in optimizer.param_groups])
            scheduler.step()
        curves.append(curve)
    assert curves[0] == curves[1]


@needs_detectron2
def test_parameter_groups():
    from detectron2.solver import get_default_optimizer_params

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), torch.nn.GroupNorm(32, 32))
    model.add_module("head", torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)))
    model.head.add_module("tied", model.head[0])
    model[0].bias.requires_grad_(False)
    common = {"base_lr": 1.0, "weight_decay": 0.1}
    cases = [
        common,
        common | {"weight_decay_norm": 0.0},
        common | {"bias_lr_factor": 2.0, "weight_decay_bias": 0.3},
        common | {"lr_factor_func": lambda n: 0.1 if n.startswith("head.0") else 1.0},
    ]
    for kwargs in cases:
        ours = solver.get_default_optimizer_params(model, **kwargs)
        theirs = get_default_optimizer_params(model, **kwargs)
        for group in (*ours, *theirs):
            group["params"] = [id(p) for p in group["params"]]
        assert ours == theirs


@needs_detectron2
def test_metrics_file(tmp_path):
    from detectron2.utils import events as d2

    writer = engine.MetricsWriter(str(tmp_path / "ours.json"))
    with d2.EventStorage(3) as theirs:
        engine.EventStorage.current = ours = engine.EventStorage(3)
        their_writer = d2.JSONWriter(str(tmp_path / "theirs.json"))
        for i in range(3, 64):
            for storage in (ours, theirs):
                storage.iter = i
                storage.put_scalar("loss_a", i**0.5)
                if i > 5:
                    storage.put_scalar("time", 1.5 + i % 7)
                storage.put_scalar("lr", 1e-4 * i, smoothing_hint=False)
                if i == 50:
                    storage.put_scalar("bbox/AP", 1, smoothing_hint=False)
            if i % 20 == 19 or i == 63:
                writer.write()
                their_writer.write()
        their_writer.close()
    text = (tmp_path / "theirs.json").read_text()
    assert (tmp_path / "ours.json").read_text() == text and text.count("\n") == 5


@needs_detectron2
def test_scheduler_state_of_a_checkpoint():
    """The state of detectron2's hook can be continued, and the other way round."""
    import detectron2.engine.hooks as d2
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 50, (30,), 3
    builders = (hooks.LRScheduler, solver.build_lr_scheduler), (d2.LRScheduler, build_lr_scheduler)
    states, rates = [], []
    for source, target in (builders, builders[::-1]):
        made = []
        for hook, build in (source, target):
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
            hook = hook()
            hook.trainer = SimpleNamespace(scheduler=build(cfg, optimizer), optimizer=optimizer)
            made.append(hook)
        for _ in range(35):
            made[0].trainer.optimizer.step()
            made[0].trainer.scheduler.step()
        states.append(made[0].state_dict())
        made[1].load_state_dict(states[-1])
        made[1].trainer.optimizer.step()
        made[1].trainer.scheduler.step()
        rates.append(made[1].trainer.optimizer.param_groups[0]["lr"])
    assert states[0] == states[1] and rates[0] == rates[1] == pytest.approx(0.01)
