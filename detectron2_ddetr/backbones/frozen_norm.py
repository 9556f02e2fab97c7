"""BatchNorm of pretrained networks, as it was loaded."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """
    A BatchNorm2d that neither measures nor learns, with what timm puts behind it, under the same
    names in a state dict.

    timm's own frozen norm takes two passes over the map, and makes 32 bits of 16.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        """
        Args:
            norm: what is frozen; timm's may have a `drop` and an activation `act`.
        """
        super().__init__()
        self.eps = norm.eps
        channels = norm.num_features
        given = {
            "weight": norm.weight if norm.affine else torch.ones(channels),
            "bias": norm.bias if norm.affine else torch.zeros(channels),
            "running_mean": norm.running_mean,
            "running_var": norm.running_var,
        }
        for name, value in given.items():
            self.register_buffer(name, value.detach().clone())
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), in the type that it has."""
        if not x.requires_grad:
            mean, var = self.running_mean, self.running_var
            x = F.batch_norm(x, mean, var, self.weight, self.bias, False, eps=self.eps)
        else:
            # The fused norm would keep x only to compute gradients of weight and bias.
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            scale, shift = (v.view(1, -1, 1, 1).to(x.dtype) for v in (scale, shift))
            x = torch.addcmul(shift, x, scale)
        return self.act(self.drop(x))


def freeze_norms(network: nn.Module) -> None:
    """Replaces all BatchNorm2d inside of it, in place."""
    norms = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name in norms:
        network.set_submodule(name, FrozenNorm(network.get_submodule(name)))
