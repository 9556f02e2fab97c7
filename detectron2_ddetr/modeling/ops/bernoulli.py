"""Random masks on CPUs: the numbers of :meth:`torch.Tensor.bernoulli_`, in a tenth of its time."""

import torch
from torch import Tensor

from .extension import HAS_CPU_KERNELS

_library = torch.library.Library("detectron2_ddetr", "FRAGMENT")
_library.define(
    "bernoulli_(Tensor(a!) generator_state, Tensor(b!) result, float probability) -> ()"
)


def bernoulli(shape: torch.Size, probability: float) -> Tensor:
    """
    True with the probability, from PyTorch's default generator, bool on the CPU.

    The draws and the state that the generator is left in are those of
    ``torch.empty(shape).bernoulli_(probability)``.
    """
    result = torch.empty(shape, dtype=torch.bool, device="cpu")
    if not HAS_CPU_KERNELS:
        return result.bernoulli_(probability)
    state = torch.get_rng_state()
    torch.ops.detectron2_ddetr.bernoulli_(state.view(torch.int64), result, probability)
    torch.set_rng_state(state)
    return result
