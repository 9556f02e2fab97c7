"""The official optimiser: AdamW with three learning rates and one gradient clip."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..config_rules import check_config
from ..errors import InputError
from ..toolbox import CfgNode, get_default_optimizer_params


class NonFiniteGradientError(FloatingPointError):
    """The gradient of the whole model has no finite norm; nothing was updated."""


class FullModelClipAdamW(torch.optim.AdamW):
    """
    AdamW that scales all gradients together when their common norm is too large, and refuses those
    that are not finite.

    detectron2 clips each parameter by itself, which is another algorithm.
    """

    def __init__(self, params, max_norm: float, **kwargs):
        """
        Args:
            max_norm: of the gradients of the whole model; math.inf leaves them as they are.
            kwargs: of :class:`torch.optim.AdamW`; the update is its fused one.
        """
        super().__init__(params, **{"fused": True, **kwargs})
        self.max_norm = max_norm
        # A fused AdamW would take gradients as GradScaler has scaled them; the clip must not.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """
        Clip, then update.

        Raises:
            NonFiniteGradientError: when a gradient is not finite; no parameter has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        if not norm.isfinite():
            raise NonFiniteGradientError(f"the gradient norm of the model is {norm.item()}")
        super().step()
        return loss


def parameter_groups(
    model: nn.Module,
    base_lr: float,
    *,
    backbone_multiplier: float = 0.1,
    linear_proj_multiplier: float = 0.1,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Groups by name: the backbone, the layers that say where to sample, and the rest.

    Args:
        model: a detector of the family.
        base_lr: learning rate of the rest.
        backbone_multiplier, linear_proj_multiplier: factors of the other two.
        options: of detectron2's `get_default_optimizer_params`, such as `weight_decay_norm`; the
            weight decay of the optimiser applies to every parameter that they say nothing of.

    Returns:
        Groups for an optimiser, with the names of their parameters.
    """

    def lr_factor(name: str) -> float:
        if name.startswith("backbone."):
            return backbone_multiplier
        if "sampling_offsets" in name or "reference_points" in name:
            return linear_proj_multiplier
        return 1.0

    groups = get_default_optimizer_params(
        model, base_lr=base_lr, lr_factor_func=lr_factor, **options
    )
    # With names, by which a training goes on in other groups: resume.py.
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [{**g, "params": [(names[p], p) for p in g["params"]]} for g in groups]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """
    AdamW with the groups of :func:`parameter_groups`, and one clip for the whole model, if any.

    Weight decay applies to every parameter, norms and biases included, unless
    SOLVER.WEIGHT_DECAY_NORM and SOLVER.WEIGHT_DECAY_BIAS say otherwise.

    Raises:
        InputError: when gradients are to be clipped in another way than over the whole model, or to
            nothing, and see :func:`check_config`.
    """
    check_config(cfg)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and (clip.CLIP_TYPE, clip.NORM_TYPE) != ("full_model", 2.0):
        raise InputError(
            "SOLVER.CLIP_GRADIENTS must have CLIP_TYPE 'full_model' and NORM_TYPE 2.0, got "
            f"{clip.CLIP_TYPE!r} and {clip.NORM_TYPE}: Deformable DETR clips the norm of the whole "
            "model, not of each parameter"
        )
    if clip.ENABLED and not 0 < clip.CLIP_VALUE < math.inf:
        raise InputError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE must be above 0, got {clip.CLIP_VALUE}: it is the "
            "largest norm that the gradient of the whole model may have"
        )

    groups = parameter_groups(
        model,
        cfg.SOLVER.BASE_LR,
        backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
        linear_proj_multiplier=cfg.SOLVER.LINEAR_PROJ_MULTIPLIER,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    max_norm = clip.CLIP_VALUE if clip.ENABLED else math.inf
    return FullModelClipAdamW(groups, max_norm=max_norm, lr=cfg.SOLVER.BASE_LR)
