"""Parameter groups and learning rate schedules."""

from collections import defaultdict
from typing import Any, Callable

import fvcore.common.param_scheduler as sched
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

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


def build_lr_scheduler(cfg: CfgNode, optimizer: optim.Optimizer) -> LambdaLR:
    """Build the multi-step or cosine schedule after its linear warm-up."""
    check_supported(cfg)
    opts = cfg.SOLVER
    steps = [step for step in opts.STEPS if step <= opts.MAX_ITER]
    values = [opts.GAMMA**k for k in range(len(steps) + 1)]
    if opts.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        main = sched.MultiStepParamScheduler(values, num_updates=opts.MAX_ITER, milestones=steps)
    elif opts.LR_SCHEDULER_NAME == "WarmupCosineLR":
        main = sched.CosineParamScheduler(1, opts.BASE_LR_END / opts.BASE_LR)
    else:
        raise ValueError(f"Unknown LR scheduler: {opts.LR_SCHEDULER_NAME}")
    length = min(opts.WARMUP_ITERS / opts.MAX_ITER, 1.0)
    warmup = sched.LinearParamScheduler(opts.WARMUP_FACTOR * main(0.0), main(length))
    lengths, scaling = [length, 1 - length], ["rescaled", "fixed"]
    both = sched.CompositeParamScheduler([warmup, main], lengths, scaling)
    return LambdaLR(optimizer, lambda iteration: both(iteration / opts.MAX_ITER))
