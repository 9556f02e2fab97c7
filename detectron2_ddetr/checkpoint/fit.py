"""Whether weights fit a model, and if not, which config key says why."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from .class_rows import num_class_rows
from .project import is_dense, layers_differ
from .sizes import config_values


def check_refinement(found: bool | None, model: nn.Module, source: str) -> None:
    """
    Args:
        found: whether the weights are of a model whose layers have heads of their own; None when
            that is unknown.

    Raises:
        InputError: when the model is of the other kind.
    """
    wanted = getattr(model.head, "with_box_refine", None)
    if None not in (found, wanted) and found != wanted:
        raise InputError(
            f"{source} does not fit this config: it was made with "
            f"MODEL.DETR.WITH_BOX_REFINE {found}, the config has {wanted}"
        )


def check_shared_heads(tensors: dict[str, Tensor], model: nn.Module, source: str) -> None:
    """
    Raises:
        InputError: when weights have other heads for each decoder layer and the model, though it
            refines boxes, has not. (Which of them a model without refinement has is told by
            :func:`check_refinement`.)
    """
    head = model.head
    shared = getattr(head, "with_box_refine", False) and getattr(head, "shared_heads", False)
    if shared and layers_differ(tensors):
        raise InputError(
            f"{source} does not fit this config: it has heads of its own for each decoder layer, "
            "which all share in the config: a DINO of detrex needs MODEL.META_ARCHITECTURE "
            "DetrexDINO"
        )


def is_dilated(model: nn.Module) -> bool:
    """Whether the backbone has dilated convolutions, as that of DC5."""
    convs = (m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    return any(max(conv.dilation) > 1 for conv in convs)


def check_dilation(found: bool | None, model: nn.Module, source: str) -> None:
    """
    Args:
        found: whether the weights are of a model with a dilated backbone; None when unknown.

    Raises:
        InputError: when the model is of the other kind, which has the same tensors.
    """
    if found is not None and found != is_dilated(model):
        raise InputError(
            f"{source} does not fit this config: it was made "
            f"{'with' if found else 'without'} a dilated backbone (DC5), whose tensors are the "
            f"same: set MODEL.RESNETS.RES5_DILATION {2 if found else 1}"
        )


def check_state_dict(
    checkpoint: dict[str, Tensor],
    model: dict[str, Tensor],
    filename: str,
    needs_head: bool = False,
    part: str = "",
) -> None:
    """
    A checkpoint must fit: all tensors of the model, or of `part` of it, in the right shapes.

    Args:
        needs_head: whether weights of the backbone alone are refused.
        part: how the names of the tensors begin that must be there.

    Raises:
        InputError: saying what the checkpoint is and what the config wants.
    """
    if part and needs_head:
        raise InputError(
            f"{filename} holds the weights of a backbone, not a trained detector: set "
            "MODEL.WEIGHTS to a checkpoint of one, such as model_final.pth of a run"
        )
    wanted = {key for key in model if key.startswith(part)}
    checks = _differences(checkpoint, model)
    missing, unexpected = sorted(wanted - set(checkpoint)), sorted(set(checkpoint) - wanted)
    shapes = [
        f"{key} {tuple(checkpoint[key].shape)} but the model has {tuple(model[key].shape)}"
        for key in sorted(wanted & set(checkpoint))
        if checkpoint[key].shape != model[key].shape
    ]
    if not (missing or unexpected or shapes or checks):
        _check_finite({key: checkpoint[key] for key in wanted}, filename)
        return
    lines = checks or [
        f"{len(found)} {what}, the first: {found[0]}"
        for what, found in (
            ("tensors are missing", missing),
            ("tensors are not in the model", unexpected),
            ("tensors have another shape", shapes),
        )
        if found
    ]
    raise InputError(f"{filename} does not fit this config: " + "; ".join(lines))


def _check_finite(state_dict: dict[str, Tensor], filename: str) -> None:
    broken = [k for k, v in state_dict.items() if not torch.isfinite(v).all()]
    if broken:
        raise InputError(
            f"{filename}: {len(broken)} of {len(state_dict)} tensors, the first {min(broken)}, "
            "hold numbers that are NaN or infinite, of which a model makes more of them: take an "
            "earlier checkpoint"
        )


def _differences(checkpoint: dict[str, Tensor], model: dict[str, Tensor]) -> list[str]:
    """Differences that a config key explains, in words."""
    if num_class_rows(checkpoint) is not None and is_dense(checkpoint) != is_dense(model):
        of = "" if is_dense(checkpoint) else "Deformable "
        return [f"it is of {of}DETR, whose transformer is another one: set MODEL.META_ARCHITECTURE"]
    found, expected = config_values(checkpoint), config_values(model)
    return [
        (
            f"it has a ResNet-{value}, the config {key} {expected[key]}"
            if key == "MODEL.RESNETS.DEPTH"
            else f"it was made with {key} {value}, the config has {expected[key]}"
        )
        for key, value in found.items()
        if expected.get(key, value) != value
    ]
