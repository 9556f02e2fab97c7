"""Registries, the ResNet backbone and the last step of a detector."""

import torch.nn.functional as F
from fvcore.common.registry import Registry
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d as _FrozenBatchNorm2d

from .config import CfgNode, check_supported
from .layers import ShapeSpec
from .structures import Instances

META_ARCH_REGISTRY = Registry("META_ARCH")
BACKBONE_REGISTRY = Registry("BACKBONE")
_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_BLOCKS_PER_STAGE |= {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def build_model(cfg: CfgNode) -> nn.Module:
    """Build ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, without loading weights."""
    check_supported(cfg)
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(cfg.MODEL.DEVICE)


class Backbone(nn.Module):
    """Maps images to a dict of named feature maps; `output_shape()` tells their ShapeSpec."""

    size_divisibility = 0
    padding_constraints: dict[str, int] = {}


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build ``MODEL.BACKBONE.NAME``."""
    input_shape = input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    return BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)


class FrozenBatchNorm2d(_FrozenBatchNorm2d):
    """
    torchvision's, but the result has the type of the input, as in detectron2. An input that has a
    gradient is overwritten: it is what a convolution gave, for which no gradient asks.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps)
        self.running_var -= eps

    def _load_from_state_dict(self, *args) -> None:
        # torchvision's takes the counter of a BatchNorm out of what is loaded.
        nn.Module._load_from_state_dict(self, *args)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, eps=self.eps)
        # The fused op would keep x only to compute gradients of weight and bias.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x.mul_(scale.view(1, -1, 1, 1).to(x.dtype)).add_(shift.view(1, -1, 1, 1).to(x.dtype))


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` followed by `norm`, if it is given."""

    def __init__(self, *args, **kwargs):
        norm = kwargs.pop("norm", nn.Identity())
        super().__init__(*args, **kwargs)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


_NORMS = {"": nn.Identity, "BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d}


def _conv(norm: str, inputs: int, outputs: int, size: int, stride: int, groups=1, dilation=1):
    kwargs = {"padding": size // 2 * dilation, "groups": groups, "dilation": dilation}
    return Conv2d(inputs, outputs, size, stride, bias=False, norm=_NORMS[norm](outputs), **kwargs)


class _Block(nn.Module):
    """Convolutions `conv1`, `conv2`, ..., of arguments for :func:`_conv`, and a shortcut."""

    def __init__(self, norm: str, inputs: int, convs: list[tuple[int, ...]]):
        super().__init__()
        outputs, stride = convs[-1][0], max(conv[2] for conv in convs)
        self.shortcut, self._num_convs = None, len(convs)
        # Made in this order, but filled in another: detectron2 draws random numbers so.
        if inputs != outputs:
            self.shortcut = _conv(norm, inputs, outputs, 1, stride)
        for i, arguments in enumerate(convs, start=1):
            self.add_module(f"conv{i}", _conv(norm, inputs, *arguments))
            inputs = arguments[0]
        for _, conv in sorted(self.named_children()):
            c2_msra_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for i in range(2, self._num_convs + 1):
            out = getattr(self, f"conv{i}")(out.relu_())
        out += x if self.shortcut is None else self.shortcut(x)
        return out.relu_()


class BasicBlock(_Block):
    """Of two convolutions, for depths 18 and 34."""


class BottleneckBlock(_Block):
    """Of three, the second of which sees a neighbourhood."""


class ResNet(Backbone):
    """A stem and the stages `res2` ... `res5`, no further than ``OUT_FEATURES`` need."""

    def __init__(self, opts: CfgNode, in_channels: int, freeze_at: int):
        super().__init__()
        self._out_features = opts.OUT_FEATURES
        last = max(["stem", "res2", "res3", "res4", "res5"].index(f) for f in opts.OUT_FEATURES)
        inputs, total_stride = opts.STEM_OUT_CHANNELS, 4
        self.stem = nn.Sequential()
        self.stem.conv1 = _conv(opts.NORM, in_channels, inputs, 7, 2)
        c2_msra_fill(self.stem.conv1)
        self.stem.extend([nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)])
        self._shapes = {"stem": ShapeSpec(channels=inputs, stride=total_stride)}
        for stage, num_blocks in enumerate(_BLOCKS_PER_STAGE[opts.DEPTH]):
            dilation = opts.RES5_DILATION if stage == 3 else 1
            stride = 2 if stage > 0 and dilation == 1 else 1
            outputs = opts.RES2_OUT_CHANNELS * 2**stage
            blocks = []
            for i in range(num_blocks):
                convs = _convs_of_block(opts, stage, outputs, stride if i == 0 else 1, dilation)
                kind = BottleneckBlock if len(convs) == 3 else BasicBlock
                blocks.append(kind(opts.NORM, inputs, convs))
                inputs = outputs
            if stage < last:
                total_stride *= stride
                self.add_module(f"res{stage + 2}", nn.Sequential(*blocks))
                self._shapes[f"res{stage + 2}"] = ShapeSpec(channels=outputs, stride=total_stride)
        for module in list(self.children())[:freeze_at]:
            module.requires_grad_(False)
            for conv in module.modules():
                if isinstance(getattr(conv, "norm", None), nn.modules.batchnorm._BatchNorm):
                    frozen = FrozenBatchNorm2d(conv.norm.num_features, conv.norm.eps)
                    frozen.register_buffer("num_batches_tracked", conv.norm.num_batches_tracked)
                    frozen.load_state_dict(conv.norm.state_dict())
                    conv.norm = frozen

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: self._shapes[name] for name in self._out_features}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps named in ``OUT_FEATURES`` of an (N, C, H, W) input."""
        outputs = {}
        for name, stage in self.named_children():
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def _convs_of_block(opts: CfgNode, stage: int, outputs: int, stride: int, dilation: int) -> list:
    if opts.DEPTH < 50:
        return [(outputs, 3, stride), (outputs, 3, 1)]
    width = opts.NUM_GROUPS * opts.WIDTH_PER_GROUP * 2**stage
    first, second = (stride, 1) if opts.STRIDE_IN_1X1 else (1, stride)
    return [(width, 1, first), (width, 3, second, opts.NUM_GROUPS, dilation), (outputs, 1, 1)]


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``MODEL.RESNETS``."""
    opts = cfg.MODEL.RESNETS
    assert opts.RES5_DILATION in (1, 2), f"RES5_DILATION must be 1 or 2, not {opts.RES5_DILATION}"
    assert not any(opts.DEFORM_ON_PER_STAGE), "DEFORM_ON_PER_STAGE needs detectron2 in this builder"
    small = (opts.RES2_OUT_CHANNELS, opts.RES5_DILATION, opts.NUM_GROUPS) == (64, 1, 1)
    assert opts.DEPTH >= 50 or small, "depth 18 and 34: RES2_OUT_CHANNELS 64, no dilation or groups"
    return ResNet(opts, input_shape.channels, cfg.MODEL.BACKBONE.FREEZE_AT)


def detector_postprocess(results: Instances, output_height: int, output_width: int) -> Instances:
    """Scale and clip `pred_boxes` to the output size and drop the empty ones; boxes change."""
    h, w = results.image_size
    results = Instances((output_height, output_width), **results.get_fields())
    results.pred_boxes.scale(output_width / w, output_height / h)
    results.pred_boxes.clip(results.image_size)
    return results[results.pred_boxes.nonempty()]
