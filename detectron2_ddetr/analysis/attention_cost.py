"""What one layer of attention costs over the number of tokens: dense, deformable, and across."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..measuring import measure
from ..modeling import MSDeformAttn
from ..toolbox import CfgNode


class Setting(NamedTuple):
    """Of all layers that are compared: C, M, L, P and Q."""

    d_model: int = 256
    n_heads: int = 8
    n_levels: int = 4
    n_points: int = 4
    num_queries: int = 300


def setting_of(cfg: CfgNode) -> Setting:
    """That of the encoder of a config."""
    node = cfg.MODEL.DETR
    numbers = (node.HIDDEN_DIM, node.NHEADS, node.NUM_FEATURE_LEVELS, node.ENC_N_POINTS)
    return Setting(*numbers, node.NUM_QUERIES)


def pyramid(setting: Setting, side: int) -> list[tuple[int, int]]:
    """(H_l, W_l) of the levels of a square image; `side` cells are the first."""
    shapes = [(side, side)]
    while len(shapes) < setting.n_levels:
        shapes.append((-(-shapes[-1][0] // 2),) * 2)
    return shapes


class ProjectingFirst(MSDeformAttn):
    """Projects all tokens, however few of them are read."""

    def samples_first(self, query: Tensor, src: Tensor) -> bool:
        return False


class SamplingFirst(MSDeformAttn):
    """The same layer in the other order, however many samples there are."""

    def samples_first(self, query: Tensor, src: Tensor) -> bool:
        return True


def _dense(setting: Setting, side: int) -> Callable[[], object]:
    attention = nn.MultiheadAttention(setting.d_model, setting.n_heads, batch_first=True)
    src = _tokens(setting, side)
    return lambda: attention(src, src, src, need_weights=False)


def _deformable(setting: Setting, side: int) -> Callable[[], object]:
    src = _tokens(setting, side)
    return _layer(ProjectingFirst, setting, side, src, src)


def _across(layer: type[MSDeformAttn]) -> Callable[[Setting, int], Callable[[], object]]:
    def make(setting: Setting, side: int) -> Callable[[], object]:
        query = torch.rand(1, setting.num_queries, setting.d_model)
        return _layer(layer, setting, side, query, _tokens(setting, side))

    return make


def _tokens(setting: Setting, side: int) -> Tensor:
    return torch.rand(1, sum(h * w for h, w in pyramid(setting, side)), setting.d_model)


def _layer(
    layer: type[MSDeformAttn], setting: Setting, side: int, query: Tensor, src: Tensor
) -> Callable[[], object]:
    attention = layer(setting.d_model, setting.n_levels, setting.n_heads, setting.n_points)
    references = torch.rand(1, query.shape[1], setting.n_levels, 2)
    return lambda: attention(query, references, src, pyramid(setting, side))


#: Each makes a call of such a layer on random tensors.
LAYERS: dict[str, Callable[[Setting, int], Callable[[], object]]] = {
    "dense self-attention": _dense,
    "deformable self-attention": _deformable,
    "deformable cross-attention": _across(ProjectingFirst),
    "the same, sampling before the projection": _across(SamplingFirst),
}


class Curve(NamedTuple):
    """Of one layer over growing images; `seconds` may be of fewer of them, the smallest."""

    tokens: list[int]
    macs: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """Of the tokens, by which the multiply-adds grow between the last two images."""
        (before, after), (few, many) = self.tokens[-2:], self.macs[-2:]
        return math.log(many / few) / math.log(after / before)


def macs(layer: str, setting: Setting, side: int) -> int:
    """
    Multiply-adds of one layer, as PyTorch's counter finds them.

    Args:
        layer: of `LAYERS`.
        side: see :func:`pyramid`.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        LAYERS[layer](setting, side)()
    return counter.get_total_flops() // 2


@torch.no_grad()
def curves(
    setting: Setting, sides: Sequence[int], timed: Sequence[int] = (), repeat: int = 3
) -> dict[str, Curve]:
    """
    Args:
        sides: of the images, see :func:`pyramid`.
        timed: those of them that are measured too, on the CPU, the smallest.
        repeat: runs of each, of which the fastest counts: what slows one down is not the layer.

    Returns:
        One for each of `LAYERS`.
    """
    made = {}
    for name, make in LAYERS.items():
        seconds = []
        for side in timed:
            call = {name: make(setting, side)}
            found = measure(call, repeat, 1, time.perf_counter, torch.device("cpu"))[name]
            seconds.append(min(found))
        tokens = [sum(h * w for h, w in pyramid(setting, side)) for side in sides]
        made[name] = Curve(tokens, [macs(name, setting, side) for side in sides], seconds)
    return made
