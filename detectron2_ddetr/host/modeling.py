"""Registries, the ResNet backbone and the last step of a detector."""

from abc import ABCMeta, abstractmethod

import torch.nn.functional as F
from fvcore.common.registry import Registry
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from .config import CfgNode
from .layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from .structures import Instances

META_ARCH_REGISTRY = Registry("META_ARCH")
BACKBONE_REGISTRY = Registry("BACKBONE")
_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def build_model(cfg: CfgNode) -> nn.Module:
    """Build ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, without loading weights."""
    for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            raise NotImplementedError(
                f"MODEL.{key} needs detectron2; the embedded host does boxes only"
            )
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(cfg.MODEL.DEVICE)


class Backbone(nn.Module, metaclass=ABCMeta):
    """Maps images to a dict of named feature maps."""

    @abstractmethod
    def forward(self): ...

    @property
    def size_divisibility(self) -> int:
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build ``MODEL.BACKBONE.NAME``."""
    input_shape = input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    assert isinstance(backbone, Backbone), type(backbone)
    return backbone


def _conv(inputs: int, outputs: int, size: int, norm: str, **kwargs) -> Conv2d:
    padding = size // 2 * kwargs.get("dilation", 1)
    norm = get_norm(norm, outputs)
    return Conv2d(inputs, outputs, size, padding=padding, bias=False, norm=norm, **kwargs)


class _Block(nn.Module):
    """A residual block; subclasses add `conv1`, `conv2`, ... after the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride)

    def _add_convs(self, *convs: Conv2d) -> None:
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
        self.num_convs = len(convs)
        for conv in (*convs, self.shortcut):
            if conv is not None:
                c2_msra_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for i in range(2, self.num_convs + 1):
            out = getattr(self, f"conv{i}")(F.relu_(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicBlock(_Block):
    """Two 3x3 convolutions, for depths 18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN"):
        super().__init__(in_channels, out_channels, stride, norm)
        self._add_convs(
            _conv(in_channels, out_channels, 3, norm, stride=stride),
            _conv(out_channels, out_channels, 3, norm),
        )


class BottleneckBlock(_Block):
    """1x1, 3x3 and 1x1 convolutions, for depth 50 and more."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        width, kwargs = bottleneck_channels, {"groups": num_groups, "dilation": dilation}
        self._add_convs(
            _conv(in_channels, width, 1, norm, stride=stride_1x1),
            _conv(width, width, 3, norm, stride=stride_3x3, **kwargs),
            _conv(width, out_channels, 1, norm),
        )


class BasicStem(nn.Module):
    """A 7x7 convolution and a max pooling: stride 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN"):
        super().__init__()
        self.out_channels, self.stride = out_channels, 4
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and the stages `res2` ... `res5`, no further than `out_features` need."""

    def __init__(self, stem, stages, out_features, freeze_at: int = 0):
        super().__init__()
        self.stem = stem
        self._out_features = out_features
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        self.stage_names = [f"res{i}" for i in range(2, 2 + len(stages))]
        assert set(out_features) <= {"stem", *self.stage_names}, out_features
        last = max(map(["stem", *self.stage_names].index, out_features))
        self.stage_names, stride = self.stage_names[:last], stem.stride
        for name, blocks in zip(self.stage_names, stages):
            self.add_module(name, nn.Sequential(*blocks))
            stride *= blocks[0].stride
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = blocks[-1].out_channels
        self.freeze(freeze_at)

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Freeze the stem (1), the stem and `res2` (2), and so on."""
        for name in ["stem", *self.stage_names][:freeze_at]:
            getattr(self, name).requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(getattr(self, name))
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps named in `out_features` of an (N, C, H, W) input."""
        outputs = {}
        for name in ["stem", *self.stage_names]:
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``MODEL.RESNETS``."""
    opts = cfg.MODEL.RESNETS
    if any(opts.DEFORM_ON_PER_STAGE):
        raise NotImplementedError("MODEL.RESNETS.DEFORM_ON_PER_STAGE needs detectron2")
    assert opts.RES5_DILATION in (1, 2), f"RES5_DILATION must be 1 or 2, got {opts.RES5_DILATION}"
    basic = opts.DEPTH < 50
    if basic and (opts.RES2_OUT_CHANNELS, opts.RES5_DILATION, opts.NUM_GROUPS) != (64, 1, 1):
        raise ValueError("depth 18 and 34 need RES2_OUT_CHANNELS 64, no dilation and one group")
    stem = BasicStem(input_shape.channels, opts.STEM_OUT_CHANNELS, opts.NORM)
    stages, channels = [], opts.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(_BLOCKS_PER_STAGE[opts.DEPTH]):
        dilation = opts.RES5_DILATION if i == 3 else 1
        kwargs = {"norm": opts.NORM}
        if not basic:
            kwargs["bottleneck_channels"] = opts.NUM_GROUPS * opts.WIDTH_PER_GROUP * 2**i
            kwargs |= {"stride_in_1x1": opts.STRIDE_IN_1X1, "dilation": dilation}
            kwargs["num_groups"] = opts.NUM_GROUPS
        blocks, outputs = [], opts.RES2_OUT_CHANNELS * 2**i
        for j in range(num_blocks):
            stride = 2 if j == 0 and i > 0 and dilation == 1 else 1
            block = BasicBlock if basic else BottleneckBlock
            blocks.append(block(channels, outputs, stride=stride, **kwargs))
            channels = outputs
        stages.append(blocks)
    return ResNet(stem, stages, opts.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT)


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale and clip `pred_boxes` to the output size and drop the empty ones; boxes change."""
    if results.has("pred_masks") or results.has("pred_keypoints"):
        raise NotImplementedError("masks and keypoints need detectron2")
    h, w = results.image_size
    results = Instances((output_height, output_width), **results.get_fields())
    results.pred_boxes.scale(output_width / w, output_height / h)
    results.pred_boxes.clip(results.image_size)
    return results[results.pred_boxes.nonempty()]
