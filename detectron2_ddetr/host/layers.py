"""Convolution with a norm inside, and the norms of a ResNet."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d as _FrozenBatchNorm2d


@dataclass
class ShapeSpec:
    """What a layer needs to know of its input."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class FrozenBatchNorm2d(_FrozenBatchNorm2d):
    """torchvision's, but the result has the type of the input, as in detectron2."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps)
        self.running_var -= eps

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, eps=self.eps)
        # The fused op would keep x only to compute gradients of weight and bias.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)


NORMS = {
    "": lambda channels: None,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` followed by an optional `norm`."""

    def __init__(self, *args, norm: nn.Module | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)
