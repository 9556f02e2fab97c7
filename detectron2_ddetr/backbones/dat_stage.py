"""The stages of DAT and DAT++: blocks of an attention and a perceptron, each a letter."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..modeling.channels_last import ChannelNorm, Pointwise, depthwise
from ..modeling.linear import Linear


class Perceptron(nn.Module):
    """Of each cell: a hidden layer of `expansion` times its channels (DAT)."""

    def __init__(self, channels: int, expansion: int, drop: float):
        super().__init__()
        self.chunk = nn.Sequential()
        self.chunk.add_module("linear1", Linear(channels, expansion * channels))
        self.chunk.add_module("act", nn.GELU())
        self.chunk.add_module("drop1", nn.Dropout(drop))
        self.chunk.add_module("linear2", Linear(expansion * channels, channels))
        self.chunk.add_module("drop2", nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        return self.chunk(x)


class ConvolutionalPerceptron(nn.Module):
    """The same, whose hidden layer gets something of the eight cells around (DAT++)."""

    def __init__(self, channels: int, expansion: int, drop: float):
        super().__init__()
        hidden = expansion * channels
        self.linear1 = nn.Sequential(Pointwise(channels, hidden))
        self.dwc = depthwise(hidden, 3, padding=1)
        self.act = nn.GELU()
        self.linear2 = nn.Sequential(Pointwise(hidden, channels))
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.linear1(x))
        return self.drop(self.linear2(self.act(x + self.dwc(x))))


class DATStage(nn.Module):
    """Blocks of x + attention(norm(x)), x + perceptron(norm(x))."""

    def __init__(
        self,
        dim_in: int,
        dim: int,
        attentions: Sequence[Callable[[], nn.Module]],
        *,
        perceptron: Callable[[], nn.Module],
        local_perception: bool,
        drop_path_rates: Sequence[float],
    ):
        """
        Args:
            attentions: make the attention of each block, of (N, H, W, C).
            perceptron: makes that of a block.
            local_perception: begins each block with a 3x3 convolution of each channel (DAT++).
            drop_path_rates: of each block, how often it is left out in training, for an image.
        """
        super().__init__()
        self.proj = Pointwise(dim_in, dim) if dim_in != dim else nn.Identity()
        self.layer_norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2 * len(attentions)))
        self.mlps = nn.ModuleList(perceptron() for _ in attentions)
        self.attns = nn.ModuleList(make() for make in attentions)
        self.drop_path = nn.ModuleList(StochasticDepth(p, "row") for p in drop_path_rates)
        self.local_perception_units = nn.ModuleList(
            depthwise(dim, 3, padding=1) for _ in attentions if local_perception
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) -> (N, H, W, C)."""
        x = self.proj(x)
        for block, (attention, mlp) in enumerate(zip(self.attns, self.mlps)):
            drop = self.drop_path[block]
            if self.local_perception_units:
                x = x + self.local_perception_units[block](x)
            x = x + drop(attention(self.layer_norms[2 * block](x)))
            x = x + drop(mlp(self.layer_norms[2 * block + 1](x)))
        return x
