"""Parameter groups and learning rate schedules."""

from collections import defaultdict
from typing import Any, Callable

import fvcore.common.param_scheduler as sched
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from .config import CfgNode, check_supported

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Group parameters by rate and decay; `lr_factor_func` maps names to multiples of the rate."""
    if base_lr is None or weight_decay is None:
        raise NotImplementedError("groups without base_lr or weight_decay need detectron2")
    groups, seen = defaultdict(list), set()
    for module_name, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if not param.requires_grad or param in seen:
                continue
            seen.add(param)
            lr, decay = base_lr, weight_decay
            if isinstance(module, _NORMS) and weight_decay_norm is not None:
                decay = weight_decay_norm
            if lr_factor_func is not None:
                lr *= lr_factor_func(f"{module_name}.{name}")
            if name == "bias":
                lr = lr if bias_lr_factor in (None, 1.0) else base_lr * bias_lr_factor
                decay = decay if weight_decay_bias is None else weight_decay_bias
            groups[lr, decay].append(param)
    return [{"lr": lr, "weight_decay": decay, "params": p} for (lr, decay), p in groups.items()]


class LRMultiplier(LRScheduler):
    """Multiplies every learning rate by one scheduler of the progress in [0, 1]."""

    def __init__(self, optimizer: optim.Optimizer, multiplier, max_iter: int):
        self._multiplier, self._max_iter = multiplier, max_iter
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]


def build_lr_scheduler(cfg: CfgNode, optimizer: optim.Optimizer) -> LRScheduler:
    """Build ``SOLVER.LR_SCHEDULER_NAME`` after its warm-up."""
    check_supported(cfg)
    opts = cfg.SOLVER
    if opts.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in opts.STEPS if step <= opts.MAX_ITER]
        values = [opts.GAMMA**k for k in range(len(steps) + 1)]
        main = sched.MultiStepParamScheduler(values, num_updates=opts.MAX_ITER, milestones=steps)
    else:
        main = sched.CosineParamScheduler(1, opts.BASE_LR_END / opts.BASE_LR)
    length = min(opts.WARMUP_ITERS / opts.MAX_ITER, 1.0)
    start = opts.WARMUP_FACTOR * main(0.0)
    end = main(0.0) if opts.RESCALE_INTERVAL else main(length)
    warmup = sched.LinearParamScheduler(start, end)
    if opts.WARMUP_METHOD == "constant":
        warmup = sched.ConstantParamScheduler(start)
    scaling = ["rescaled", "rescaled" if opts.RESCALE_INTERVAL else "fixed"]
    both = sched.CompositeParamScheduler([warmup, main], [length, 1 - length], scaling)
    return LRMultiplier(optimizer, both, max_iter=opts.MAX_ITER)
