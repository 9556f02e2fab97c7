"""The backbones of timm (https://github.com/huggingface/pytorch-image-models), all by one class."""

import importlib.util

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..toolbox import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec
from .depthwise import learn_in_float32
from .frozen_norm import freeze_norms

#: By how names begin: networks that cut images into patches, which have to fit in; and what lets
#: them take images of any size. Swin's windows move in all stages, as in its own detectors, also
#: where those of a classifier cover the map. The last map of a plain ViT is its only one.
_OF_PATCHES = {
    "convnext": {},
    "swin_": {"dynamic_img_size": True, "always_partition": True},
    "vit_": {"dynamic_img_size": True, "out_indices": 1},
}


class TimmBackbone(Backbone):
    """
    Any network of timm that gives feature maps, here named by their stride: "stride4", "stride8",
    "stride16", "stride32".
    """

    def __init__(self, name: str, *, frozen_norm: bool = False, freeze_at: int = 0, **options):
        """
        Args:
            name: such as "tf_efficientnet_lite0"; `timm.list_models()` has them.
            frozen_norm: leaves the statistics and weights of BatchNorm as they are loaded.
            freeze_at: of how many maps, from high resolution on, the layers are not trained.
            options: of `timm.create_model`, such as `drop_path_rate`.

        Raises:
            InputError: when timm is not installed, or has no such network with feature maps; also
                for frozen layers whose norms would go on to change.
        """
        super().__init__()
        if importlib.util.find_spec("timm") is None:
            raise InputError(
                f"the backbone {name} is timm's, which is not installed: pip install timm"
            )
        import timm

        patches = [extra for start, extra in _OF_PATCHES.items() if name.startswith(start)]
        if patches:  # as (N, C, H, W), with the names that the weights have
            options = {"feature_cls": "getter", **patches[0], **options}
        try:
            self.network = timm.create_model(name, features_only=True, pretrained=False, **options)
        except RuntimeError as error:
            raise InputError(
                f"timm {timm.__version__} makes no feature maps of {name!r} (MODEL.TIMM.NAME): "
                f"{error}"
            ) from error
        learn_in_float32(self.network)
        if frozen_norm:
            freeze_norms(self.network)
        info = self.network.feature_info
        self._shapes = {
            f"stride{stride}": ShapeSpec(channels=channels, stride=stride)
            for channels, stride in zip(info.channels(), info.reduction(), strict=True)
        }
        self._divisor = info.reduction()[-1] if patches else 0

        if freeze_at and not frozen_norm:
            raise InputError(
                f"freeze_at (MODEL.BACKBONE.FREEZE_AT) is {freeze_at}, but the norms of the frozen "
                "layers would go on to change: set frozen_norm (MODEL.TIMM.FROZEN_NORM) too, or "
                "freeze_at to 0"
            )
        if freeze_at > len(self._shapes):
            raise InputError(
                f"freeze_at (MODEL.BACKBONE.FREEZE_AT) is {freeze_at}, but {name} has only "
                f"{len(self._shapes)} maps: {', '.join(self._shapes)}"
            )
        self._freeze(freeze_at)

    def _freeze(self, maps: int) -> None:
        """What has a gradient from any of the first `maps`."""
        if not maps:
            return
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        parameters = [self.get_parameter(name) for name in names]
        size = list(self._shapes.values())[-1].stride
        self.eval()
        found = list(self(torch.zeros(1, 3, size, size)).values())[:maps]
        self.train()
        gradients = torch.autograd.grad(sum(x.sum() for x in found), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients):
            parameter.requires_grad_(gradient is None)

    @property
    def size_divisibility(self) -> int:
        """Of height and width, so that patches and strides fit in; 0 where any will do."""
        return self._divisor

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> (N, C, H / stride, W / stride) each, rounded up."""
        return dict(zip(self._shapes, self.network(x), strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network that MODEL.TIMM.NAME names."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME, frozen_norm=node.FROZEN_NORM, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


class SimplePyramid(Backbone):
    """
    "stride8", "stride16" and "stride32" from the last map of a network that has one of stride 16,
    as a plain ViT (https://arxiv.org/abs/2203.16527): by a transposed convolution, as it is, and by
    a pooling. The convolutions and norms that follow there are the head's own projections here.
    """

    size_divisibility = 32  # so that the last map is half of the one before

    def __init__(self, net: Backbone):
        """
        Args:
            net: its last map has stride 16.

        Raises:
            InputError: if that has another stride.
        """
        super().__init__()
        self.net = net
        self._source, shape = list(net.output_shape().items())[-1]
        if shape.stride != 16:
            raise InputError(
                f"a simple pyramid stands on a map of stride 16, but the last of {type(net)} is "
                f"{self._source}: take build_timm_backbone for MODEL.BACKBONE.NAME"
            )
        channels = shape.channels
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.down = nn.MaxPool2d(2)
        sizes = {8: channels // 2, 16: channels, 32: channels}
        self._shapes = {f"stride{s}": ShapeSpec(channels=c, stride=s) for s, c in sizes.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), H and W divisible by 32."""
        x = self.net(x)[self._source]
        return {"stride8": self.up(x), "stride16": x, "stride32": self.down(x)}


@BACKBONE_REGISTRY.register()
def build_timm_simple_pyramid(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """On the network that MODEL.TIMM.NAME names."""
    return SimplePyramid(build_timm_backbone(cfg, input_shape))
