"""Layers that do not learn, for a few images at a time on CPUs: see BENCHMARKS.md."""

import torch
from torch import Tensor, nn

#: Numbers that such layers are given at a time, unless an image has more. The maps of a whole batch
#: are more than the C library keeps between calls, to which new memory is slow.
_NUMBERS = 2**19


def few_images_at_a_time(layers: nn.Module, x: Tensor) -> Tensor:
    """
    layers(x), of a whole batch where it has a gradient, is compiled, or is on a GPU.

    Args:
        layers: see every image for itself: none measures the statistics of a batch.
        x: (N, ...).
    """
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if compiled or x.device.type != "cpu" or _learns(layers, x):
        return layers(x)
    images = max(1, _NUMBERS // x.shape[1:].numel())
    return layers(x) if len(x) <= images else torch.cat([layers(part) for part in x.split(images)])


def _learns(layers: nn.Module, x: Tensor) -> bool:
    of_layers = any(parameter.requires_grad for parameter in layers.parameters())
    return torch.is_grad_enabled() and (x.requires_grad or of_layers)
