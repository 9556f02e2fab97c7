"""
Other forms of our own model as the peer of `tools/benchmark.py`, such as

    python tools/benchmark.py --config-file configs/quick_start.yaml --peer benchmark_peers:compiled

Above 1, `ours / peer` says how many times as fast that form is. The training steps of `as_trained`
and `int8` are the same as ours.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detectron2_ddetr.analysis.attention_cost import ProjectingFirst
from detectron2_ddetr.engine.trainer import Trainer
from detectron2_ddetr.modeling import MSDeformAttn
from detectron2_ddetr.modeling.add_norm import AddNorm
from detectron2_ddetr.modeling.linear import Linear
from detectron2_ddetr.toolbox import CfgNode


def as_trained(description: dict) -> tuple[Callable, Callable]:
    """The model itself in evaluation mode, without :meth:`for_inference`."""
    return _functions(description["config"], lambda model: model)


def int8(description: dict) -> tuple[Callable, Callable]:
    """TEST.INT8."""
    return _functions(description["config"], lambda model: model.for_inference(int8=True))


def compiled(description: dict) -> tuple[Callable, Callable]:
    """Backbone and head by torch.compile, for all sizes of images, in training and inference."""
    return _functions(description["config"], lambda model: model.for_inference(), dynamic=True)


def compiled_for_a_size(description: dict) -> tuple[Callable, Callable]:
    """The same for images of one size, as MODEL.DETR.SIZE_DIVISIBILITY leaves few of."""
    return _functions(description["config"], lambda model: model.for_inference(), dynamic=False)


def linear_of_pytorch(description: dict) -> tuple[Callable, Callable]:
    """Linear layers and feed-forward networks that PyTorch's own layers are made of."""

    def form(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is Linear:
                module.__class__ = nn.Linear
        return model

    return _functions(description["config"], form)


def frozen_layers_of_batches(description: dict) -> tuple[Callable, Callable]:
    """Frozen layers of EfficientNet-Lite0 see all images of a batch at once."""

    def maps_of(backbone: nn.Module, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name in backbone.output_shape():
            x = maps[name] = backbone.get_submodule(name)(x)
        return maps

    def form(model: nn.Module) -> nn.Module:
        model.backbone.forward = functools.partial(maps_of, model.backbone)
        return model

    return _functions(description["config"], form)


def tokens_projected_first(description: dict) -> tuple[Callable, Callable]:
    """Decoder layers project all tokens, and sample what this gives, as the official code does."""

    def form(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is MSDeformAttn:
                module.__class__ = ProjectingFirst
        return model.for_inference()

    return _functions(description["config"], form)


def all_boxes_learn(description: dict) -> tuple[Callable, Callable]:
    """The backward pass of the boxes of a two-stage encoder is that of all tokens."""

    def form(model: nn.Module) -> nn.Module:
        # A hook has to see all of them.
        model.head.bbox_embed[-1].register_forward_hook(lambda module, given, boxes: None)
        return model.for_inference()

    return _functions(description["config"], form)


def sums_and_norms_of_pytorch(description: dict) -> tuple[Callable, Callable]:
    """Dropout, sum and norm after each part of a transformer's layer in three passes."""

    def form(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is AddNorm:
                module.__class__ = nn.LayerNorm
        return model.for_inference()

    return _functions(description["config"], form)


def _functions(
    cfg: CfgNode, form: Callable[[nn.Module], nn.Module], dynamic: bool | None = None
) -> tuple[Callable, Callable]:
    model = Trainer.build_model(cfg)
    model.load_state_dict(model.state_dict(), strict=False)  # frozen layers count as loaded
    optimizer = Trainer.build_optimizer(cfg, model)
    detector = form(model)
    if dynamic is not None:
        for module in (model.backbone, model.head, detector.backbone, detector.head):
            module.compile(dynamic=dynamic)

    def train_step(images: list[Tensor], targets: list[dict]) -> float:
        model.train()
        outputs = model.network_outputs(model.pad(images), targets)
        loss = sum(model.criterion(outputs, targets).values())
        value = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return value

    @torch.no_grad()
    def infer(images: list[Tensor]) -> None:
        detector.eval()
        padded = detector.pad(images)
        detector.inference(detector.network_outputs(padded), padded.image_sizes)

    return train_step, infer
