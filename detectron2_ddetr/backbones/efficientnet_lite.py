"""EfficientNet-Lite0, whose weights of ImageNet are a file of this package."""

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..errors import InputError
from ..toolbox import BACKBONE_REGISTRY, Backbone, CfgNode, Conv2d, ShapeSpec
from .depthwise import learn_in_float32
from .few_images import few_images_at_a_time
from .frozen_norm import FrozenNorm

#: What makes each map of the one before: (expansion, channels, blocks, kernel). These are the
#: stages of EfficientNet-B0 (https://arxiv.org/abs/1905.11946, Table 1), whose first block has the
#: stride where the map begins.
_STAGES = {
    "stride2": [(1, 16, 1, 3)],
    "stride4": [(6, 24, 2, 3)],
    "stride8": [(6, 40, 2, 5)],
    "stride16": [(6, 80, 3, 3), (6, 112, 3, 5)],
    "stride32": [(6, 192, 4, 5), (6, 320, 1, 3)],
}
_STEM_CHANNELS = 32


class EfficientNetLite0(Backbone):
    """
    Five maps, "stride2", "stride4", ..., "stride32", of 16, 24, 40, 112 and 320 channels.

    EfficientNet-B0 without squeeze and excitation, with ReLU6
    (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). Norms are
    frozen, as they are loaded. A stride pads as TensorFlow does where height and width are even, so
    that a cell lies on its pixels alike in images of every size.
    """

    def __init__(self, freeze_at: int = 0):
        """
        Args:
            freeze_at: of how many maps, from high resolution on, the layers are not trained.

        Raises:
            InputError: if there are not so many.
        """
        super().__init__()
        if not 0 <= freeze_at <= len(_STAGES):
            raise InputError(
                f"freeze_at (MODEL.BACKBONE.FREEZE_AT) is {freeze_at}, but EfficientNet-Lite0 has "
                f"{len(_STAGES)} maps: {', '.join(_STAGES)}"
            )
        self._shapes = {}
        channels, stride = _STEM_CHANNELS, 2
        for name, stages in _STAGES.items():
            layers = [] if self._shapes else [_Stem()]
            step = 2 if self._shapes else 1
            for expansion, outputs, number, kernel in stages:
                for _ in range(number):
                    layers.append(_Block(channels, outputs, expansion, kernel, step))
                    channels, step = outputs, 1
            self.add_module(name, nn.Sequential(*layers))
            self._shapes[name] = ShapeSpec(channels=channels, stride=stride)
            stride *= 2
        learn_in_float32(self)
        for name in list(_STAGES)[:freeze_at]:
            getattr(self, name).requires_grad_(False)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> (N, C, H / stride, W / stride) each, rounded up."""
        maps = {}
        for name in _STAGES:
            x = maps[name] = few_images_at_a_time(getattr(self, name), x)
        return maps


class _Stem(nn.Module):
    """(N, 3, H, W) -> (N, 32, H / 2, W / 2)."""

    def __init__(self):
        super().__init__()
        self.pad = _padding(3)
        self.conv = _convolution(3, _STEM_CHANNELS, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.conv(self.pad(x)), inplace=True)


class _Block(nn.Module):
    """An inverted residual block (https://arxiv.org/abs/1801.04381)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = None if expansion == 1 else _convolution(inputs, inner, 1)
        self.pad = nn.Identity() if stride == 1 else _padding(kernel)
        self.depthwise = _convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _convolution(inner, outputs, 1)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        out = self.project(F.relu6(self.depthwise(self.pad(out)), inplace=True))
        return out + x if self.is_residual else out


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    norm = FrozenNorm(nn.BatchNorm2d(outputs, eps=1e-3))
    sizes = {"stride": stride, "padding": padding, "groups": groups}
    conv = Conv2d(inputs, outputs, kernel, bias=False, norm=norm, **sizes)
    c2_msra_fill(conv)
    return conv


def _padding(kernel: int) -> nn.ZeroPad2d:
    """Of a stride of 2: where a map has an even size, its last row and column are not read."""
    before, after = kernel // 2 - 1, kernel // 2 + 1
    return nn.ZeroPad2d((before, after, before, after))


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """:class:`EfficientNetLite0`; MODEL.BACKBONE.FREEZE_AT is its `freeze_at`."""
    return EfficientNetLite0(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
