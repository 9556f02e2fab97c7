"""Perceptrons: of boxes and positions of queries, and of the layers of a transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout
from .linear import Linear


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(dims, dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        rows = _rows(x)
        for layer in self.layers[:-1]:
            rows = F.relu_(layer(rows))
        return self.layers[-1](rows).unflatten(0, x.shape[:-1])


#: Rows at a time in evaluation on CPUs. The hidden numbers of all cells of an image are more than
#: the C library keeps between calls, and new memory costs a fifth of the time of the network.
_ROWS = 2048


def feed_forward(x: Tensor, linear1: nn.Linear, dropout: Dropout, linear2: nn.Linear) -> Tensor:
    """The network of a transformer's layer, (..., C) -> the same: linear, ReLU, dropout, linear."""
    rows = _rows(x)
    whole = torch.is_grad_enabled() or x.device.type != "cpu"
    if whole or torch.compiler.is_compiling() or torch.jit.is_tracing() or len(rows) <= _ROWS:
        return linear2(dropout.of_relu_(linear1(rows))).view_as(x)
    parts = [linear2(dropout.of_relu_(linear1(part))) for part in rows.split(_ROWS)]
    return torch.cat(parts).view_as(x)


def _rows(x: Tensor) -> Tensor:
    """
    (..., C) -> (R, C). The result of a layer of more axes is a view, and a view that is overwritten
    costs autograd a copy of its gradient.
    """
    return x.flatten(0, -2)
