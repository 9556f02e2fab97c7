"""Parts of a backbone that no map depends on which is read."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class _Gradients(nn.Module):
    """Forward and backward in one call."""

    def __init__(self, backbone: nn.Module, names: Sequence[str]):
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, image: Tensor) -> None:
        maps = self.backbone(image)
        loss = sum(maps[name].sum() for name in self.names)
        if loss.requires_grad:
            loss.backward()


def unread_parameters(backbone: nn.Module, names: Sequence[str], image: Tensor) -> list[str]:
    """
    Which parameters get no gradient. It is tried on the device "meta", where nothing is computed
    and nothing is changed.

    Args:
        backbone, names, image: as of :func:`freeze_unread`.

    Raises:
        RuntimeError: torch's, of what "meta" cannot do.
    """
    probe = _Gradients(backbone, names)
    tensors = {
        name: torch.empty_like(x, device="meta", requires_grad=x.requires_grad)
        for kind in (probe.named_parameters(), probe.named_buffers())
        for name, x in kind
    }
    modes = {module: module.training for module in probe.modules()}
    try:
        probe.eval()
        with torch.enable_grad():  # whoever builds a model may not want gradients
            torch.func.functional_call(probe, tensors, (image,))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [
        name
        for name, x in backbone.named_parameters()
        if x.requires_grad and tensors[f"backbone.{name}"].grad is None
    ]


def freeze_unread(backbone: nn.Module, names: Sequence[str], image: Tensor) -> None:
    """
    Freezes the parameters that get no gradient: the outputs of a feature pyramid for levels that
    nobody reads, the last stage of a ResNet whose map is not read.

    Processes that train together wait for the gradient of every parameter that is not frozen, and
    the optimiser keeps a state of each.

    Args:
        backbone: its modules that own such a parameter get `is_unread` = True.
        names: of the maps that are read.
        image: (1, C, H, W) on "meta", of a size that the backbone takes.
    """
    try:
        unread = unread_parameters(backbone, names, image)
    except RuntimeError as error:
        logger.warning(
            "which parameters of the backbone get no gradient cannot be found out, since it does "
            'not run on the device "meta": %s',
            str(error).partition("\n")[0],
        )
        return
    for name in unread:
        owner, _, parameter = name.rpartition(".")
        module = backbone.get_submodule(owner)
        module.get_parameter(parameter).requires_grad_(False)
        module.is_unread = True
    if unread:
        logger.info(
            "%d parameters of the backbone are frozen, the first backbone.%s, since none of the "
            "maps %s depends on them",
            len(unread),
            unread[0],
            list(names),
        )
