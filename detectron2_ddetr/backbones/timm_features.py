"""The backbones of timm (https://github.com/huggingface/pytorch-image-models), all by one class."""

import importlib.util

import torch
from torch import Tensor

from ..errors import InputError
from ..toolbox import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec


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
        from timm.layers import freeze_batch_norm_2d

        try:
            self.network = timm.create_model(name, features_only=True, pretrained=False, **options)
        except RuntimeError as error:
            raise InputError(
                f"timm {timm.__version__} makes no feature maps of {name!r} (MODEL.TIMM.NAME): "
                f"{error}"
            ) from error
        if frozen_norm:
            self.network = freeze_batch_norm_2d(self.network)
        info = self.network.feature_info
        self._shapes = {
            f"stride{stride}": ShapeSpec(channels=channels, stride=stride)
            for channels, stride in zip(info.channels(), info.reduction(), strict=True)
        }

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
