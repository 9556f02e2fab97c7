"""Random masks on CPUs: the numbers of :meth:`torch.Tensor.bernoulli_`, in a tenth of its time."""

import torch
from torch import Tensor

from .extension import HAS_CPU_KERNELS

_library = torch.library.Library("detectron2_ddetr", "FRAGMENT")
_library.define(
    "bernoulli_(Tensor(a!) generator_state, Tensor(b!) result, float probability) -> ()"
)
# For compilers, which do not see the state of the generator: the tag tells them to draw once.
_library.define(
    "bernoulli_like(Tensor x, float probability) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
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


@torch.library.impl(_library, "bernoulli_like", "CPU")
def _(x: Tensor, probability: float) -> Tensor:
    return bernoulli(x.shape, probability)


@torch.library.register_fake("detectron2_ddetr::bernoulli_like", lib=_library)
def _(x: Tensor, probability: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bool)


def bernoulli_like(x: Tensor, probability: float) -> Tensor:
    """:func:`bernoulli` of the shape of `x`, on the CPU, for programs that are compiled."""
    return torch.ops.detectron2_ddetr.bernoulli_like(x, probability)
