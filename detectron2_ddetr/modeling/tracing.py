"""Sizes under `torch.jit.trace`, which makes tensors of them and follows what functions do."""

from torch import Tensor


def at_most(limit: int, size: int | Tensor) -> int | Tensor:
    """min(limit, size), which for a tensor would decide once for all runs of the program."""
    return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)
