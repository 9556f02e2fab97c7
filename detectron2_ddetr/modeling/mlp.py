"""Perceptrons, of boxes and of positions of queries."""

from torch import Tensor, nn

from .linear import Linear, relu_of


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(dims, dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        rows = x.flatten(0, -2)  # as in feed_forward
        for layer in self.layers[:-1]:
            rows = relu_of(layer, rows)
        return self.layers[-1](rows).unflatten(0, x.shape[:-1])
