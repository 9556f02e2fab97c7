"""Parameters and multiply-adds of a model, part by part; nothing is computed for them."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..toolbox import CfgNode, ImageList, build_model


class Network(nn.Module):
    """Images in and tensors out: what a counter can follow, and a clock time."""

    def __init__(self, model: nn.Module):
        """
        Args:
            model: a meta-architecture of this package, with its `network_outputs`.
        """
        super().__init__()
        self.model = model.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), normalised, of that size each -> logits and boxes of all layers."""
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        outputs = self.model.network_outputs(ImageList(images, sizes))
        # A layer whose output is not returned would be left out of a traced program.
        layers = [outputs, *outputs["aux_outputs"]]
        layers += [outputs[key] for key in ("enc_outputs", "interm_outputs") if key in outputs]
        return tuple(x for layer in layers for x in layer.values() if isinstance(x, Tensor))

    def image(self, size: tuple[int, int]) -> Tensor:
        """(1, 3, H, W) zeros: one of that (height, width), padded as the model pads it."""
        channels = len(self.model.pixel_mean)
        with torch.device("cpu"):  # detectron2 computes the padding with tensors
            images = self.model.pad([torch.zeros(channels, *size)])
        return images.tensor.to(self.model.device)


class Part(NamedTuple):
    """A module, by its name in the model; "" is all of it."""

    name: str
    parameters: int
    trained: int
    macs: int


def model_on_meta(cfg: CfgNode) -> nn.Module:
    """The model of a config, without numbers in it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def count(model: nn.Module, size: tuple[int, int]) -> list[Part]:
    """
    Args:
        model: of this package; on the device "meta" this takes a second.
        size: (height, width) of the image that goes in.

    Returns:
        The modules down to lists of layers, as they lie in the model, and last all of it. What is
        as large as the module around it is left out, and so is what costs nothing. `macs` are
        multiplications with an addition, half of what PyTorch's counter says.
    """
    network = Network(model)
    with _without_gradients(model), FlopCounterMode(display=False) as counter:
        network(network.image(size))
    counts = counter.get_flop_counts()

    def flops(name: str, module: nn.Module) -> int:
        called = counts.get(f"Network.model.{name}")
        if called is not None:
            return sum(called.values())
        # It has no forward, or is not called by it: what is in it is.
        return sum(flops(f"{name}.{child}", part) for child, part in module.named_children())

    def part(name: str, module: nn.Module, macs: int) -> Part:
        parameters = list(module.parameters())
        numbers = sum(p.numel() for p in parameters)
        return Part(name, numbers, sum(p.numel() for p in parameters if p.requires_grad), macs)

    def parts(around: Part, module: nn.Module) -> Iterator[Part]:
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            return
        for child_name, child in module.named_children():
            name = f"{around.name}.{child_name}".lstrip(".")
            found = part(name, child, flops(name, child) // 2)
            if found[1:] != around[1:] and any(found[1:]):
                yield found
            yield from parts(found, child)

    whole = part("", model, counter.get_total_flops() // 2)
    return [*parts(whole, model), whole]


@contextlib.contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """
    PyTorch's counter looks for the gradient of what enters a module, which a part of a weight that
    is made under `no_grad`, such as a learned query, says that it has, and has not.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def count_by_fvcore(network: Network, images: Tensor) -> dict[str, int]:
    """
    Multiply-adds by operator, as fvcore counts them, and so detectron2's analyze_model.py: also
    those of normalisation and resizing, which PyTorch's counter leaves out. The network runs once.

    Args:
        images: (N, 3, H, W), not on "meta".
    """
    counter = FlopCountAnalysis(network, (images,))
    # What is not counted is element by element, and what is not called is for training.
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counter.tracer_warnings("none")
    return {name: math.ceil(macs) for name, macs in counter.by_operator().items()}
