"""From the maps of a backbone to the levels of the transformer (Sec. A.2)."""

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """
    PyTorch's, also of a single value per group, which becomes 0 before weight and bias: an image of
    one cell alone, with as many channels as groups. `F.group_norm` refuses that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class FeatureProjector(nn.ModuleList):
    """
    Backbone maps -> one map of C channels per level (Sec. A.2).

    Each backbone map gets a 1x1 convolution. Extra levels halve the resolution with a 3x3
    convolution: the first reads the last backbone map, each further one the level before it.
    All are followed by GroupNorm.
    """

    def __init__(self, in_channels: list[int], d_model: int = 256, num_levels: int = 4):
        """
        Args:
            in_channels: channels of the backbone maps, from high to low resolution.
            d_model: C.
            num_levels: L, at least as many as backbone maps.
        """
        if num_levels < len(in_channels):
            raise ValueError(
                f"num_levels ({num_levels}) must be at least the number of backbone maps "
                f"({len(in_channels)})"
            )
        num_extra = num_levels - len(in_channels)
        extra_channels = ([in_channels[-1]] + [d_model] * num_extra)[:num_extra]
        convs = [nn.Conv2d(c, d_model, kernel_size=1) for c in in_channels]
        convs += [nn.Conv2d(c, d_model, 3, stride=2, padding=1) for c in extra_channels]
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        super().__init__(nn.Sequential(conv, GroupNorm(32, d_model)) for conv in convs)
        self.num_backbone_maps = len(in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One (N, C_l, H_l, W_l) per backbone map -> one (N, C, H_l, W_l) per level."""
        maps = [project(x) for project, x in zip(self, features)]
        source = features[-1]
        for project in list(self)[self.num_backbone_maps :]:
            source = project(source)
            maps.append(source)
        return maps


class PlainProjector(nn.Conv2d):
    """The only map that is read, by a 1x1 convolution without norm, as in DETR."""

    def __init__(self, in_channels: int, d_model: int = 256):
        """
        Args:
            in_channels: channels of the backbone map.
            d_model: C.
        """
        super().__init__(in_channels, d_model, kernel_size=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One (N, C', H, W) -> one (N, C, H, W)."""
        return [super(PlainProjector, self).forward(feature) for feature in features]
