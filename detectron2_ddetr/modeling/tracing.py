"""What is recorded instead of computed: `torch.jit.trace` makes tensors of sizes."""

import torch
from torch import Tensor


def at_most(limit: int, size: int | Tensor) -> int | Tensor:
    """min(limit, size), which for a tensor would decide once for all runs of the program."""
    return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)


def is_recorded(x: Tensor) -> bool:
    """Whether what is done to `x` becomes a program, or is counted, without numbers."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta
