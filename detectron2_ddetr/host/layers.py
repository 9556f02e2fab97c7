"""Convolution with a norm inside, and the norms of a ResNet."""

from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class ShapeSpec:
    """What a layer needs to know of its input."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are buffers and never change."""

    _version = 3  # of detectron2, for its checkpoints

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, eps=self.eps)
        # The fused op would keep x only to compute gradients of weight and bias.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every batch norm inside `module`; a new module is returned if it is one itself."""
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, child in module.named_children():
                frozen = cls.convert_frozen_batchnorm(child)
                if frozen is not child:
                    module.add_module(name, frozen)
            return module
        result = cls(module.num_features, module.eps)
        if module.affine:
            result.weight.data = module.weight.data.clone().detach()
            result.bias.data = module.bias.data.clone().detach()
        result.running_mean.data = module.running_mean.data
        result.running_var.data = module.running_var.data
        result.num_batches_tracked = module.num_batches_tracked
        return result


def get_norm(norm: str | Callable | None, out_channels: int) -> nn.Module | None:
    """Return the norm layer for a name ("" for none) or a callable that takes the channels."""
    if norm is None or norm == "":
        return None
    known = {
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.SyncBatchNorm,
        "FrozenBN": FrozenBatchNorm2d,
        "GN": lambda channels: nn.GroupNorm(32, channels),
    }
    if isinstance(norm, str) and norm not in known:
        raise NotImplementedError(f"norm {norm!r} needs detectron2; the host has {list(known)}")
    return known.get(norm, norm)(out_channels)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` followed by an optional `norm` and `activation`."""

    def __init__(self, *args, **kwargs):
        norm, activation = kwargs.pop("norm", None), kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)
