"""Less memory in training: activations are computed again in the backward pass, not kept."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(modules: Iterable[nn.Module]) -> None:
    """
    From now on each of `modules` keeps only its inputs for the backward pass, where it runs again
    (https://arxiv.org/abs/1604.06174): a third more time for a fraction of the memory. Outputs,
    gradients, random numbers, the running statistics of BatchNorm and the names of the weights
    are those of before. Evaluation is not touched.
    """
    for module in modules:
        module.forward = functools.partial(_run, module, module.forward)


def _run(module: nn.Module, forward: Callable, *args, **kwargs):
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    contexts = functools.partial(_first_and_again, module)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _first_and_again(module: nn.Module) -> tuple[contextlib.AbstractContextManager, ...]:
    return contextlib.nullcontext(), _statistics_kept(module)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm has counted the batch already."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """
    What a network is a sequence of: the members, themselves made of layers, of its outermost lists
    (nn.Sequential, nn.ModuleList), such as the residual blocks of a ResNet.
    """
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from (block for block in child if any(True for _ in block.children()))
        else:
            yield from blocks_of(child)
