"""Parameter groups and learning rate schedules."""

from collections import defaultdict
from typing import Any, Callable

import fvcore.common.param_scheduler as sched
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from .config import CfgNode

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """
    Group the trainable parameters by their learning rate and weight decay.

    Args:
        lr_factor_func: maps a full parameter name to a multiple of `base_lr`.
        overrides: maps the *last* part of a parameter's name to its settings; these win.
    """
    overrides, bias = dict(overrides or {}), {}
    if base_lr is None and (bias_lr_factor not in (None, 1.0) or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func require base_lr")
    if bias_lr_factor not in (None, 1.0):
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias and "bias" in overrides:
        raise ValueError("Conflicting overrides for 'bias'")
    if bias:
        overrides["bias"] = bias
    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {k: v for k, v in defaults.items() if v is not None}
    groups, seen = defaultdict(list), set()
    for module_name, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if not param.requires_grad or param in seen:
                continue
            seen.add(param)
            settings = dict(defaults)
            if isinstance(module, _NORMS) and weight_decay_norm is not None:
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(overrides.get(name, {}))
            groups[tuple(settings.items())].append(param)
    return [{**dict(settings), "params": params} for settings, params in groups.items()]


class LRMultiplier(LRScheduler):
    """Multiplies every learning rate by one scheduler of the progress in [0, 1]."""

    def __init__(
        self,
        optimizer: optim.Optimizer,
        multiplier: sched.ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ):
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]


def build_lr_scheduler(cfg: CfgNode, optimizer: optim.Optimizer) -> LRScheduler:
    """Build ``SOLVER.LR_SCHEDULER_NAME`` after its warm-up."""
    opts = cfg.SOLVER
    if opts.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in opts.STEPS if step <= opts.MAX_ITER]
        values = [opts.GAMMA**k for k in range(len(steps) + 1)]
        main = sched.MultiStepParamScheduler(values, num_updates=opts.MAX_ITER, milestones=steps)
    elif opts.LR_SCHEDULER_NAME == "WarmupCosineLR":
        main = sched.CosineParamScheduler(1, opts.BASE_LR_END / opts.BASE_LR)
    else:
        raise NotImplementedError(f"{opts.LR_SCHEDULER_NAME} needs detectron2")
    length = min(opts.WARMUP_ITERS / opts.MAX_ITER, 1.0)
    start = opts.WARMUP_FACTOR * main(0.0)
    if opts.WARMUP_METHOD not in ("constant", "linear"):
        raise ValueError(f"Unknown warmup method: {opts.WARMUP_METHOD}")
    end = main(0.0) if opts.RESCALE_INTERVAL else main(length)
    warmup = sched.LinearParamScheduler(start, end)
    if opts.WARMUP_METHOD == "constant":
        warmup = sched.ConstantParamScheduler(start)
    scaling = ["rescaled", "rescaled" if opts.RESCALE_INTERVAL else "fixed"]
    both = sched.CompositeParamScheduler([warmup, main], [length, 1 - length], scaling)
    return LRMultiplier(optimizer, both, max_iter=opts.MAX_ITER)
