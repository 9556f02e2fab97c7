"""The form of a model that only detects: the same numbers, less work."""

import copy
import functools

import torch
from torch import Tensor, nn

from .backbones.deformable_resnet import DeformConv2d
from .errors import InputError
from .onednn import use_onednn

#: What autocast casts the weights of, and what of them.
_PRODUCTS = {
    nn.Linear: ("weight", "bias"),
    nn.Conv2d: ("weight", "bias"),
    nn.MultiheadAttention: ("in_proj_weight", "in_proj_bias"),
}


class Int8Linear(nn.Module):
    """
    A linear layer whose weight has 8 bits, each row with a scale of its own. Its input is rounded
    to 8 bits, all of it with one scale; what is not finite makes all of the result NaN. Where the
    processor adds products in 16 bits, weights have 7, which these sums can hold.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        tiny = torch.finfo(torch.float32).tiny
        self.scales = (weight.abs().amax(1) / (127 if _holds_8_bits() else 63)).clamp(min=tiny)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(self.rounded, None)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "weight": None}  # packed, which PyTorch cannot copy

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.weight = torch.ops.onednn.qlinear_prepack(self.rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        least, most = rows.aminmax()
        least, most = least.clamp(max=0.0), most.clamp(min=0.0)  # zero stays zero
        scale = ((most - least) / 255).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-least / scale).round()
        # Truncated, which rounds what a half is added to.
        rows = torch.add(zero + 0.5, rows, alpha=1 / scale.item()).to(torch.uint8)
        result = _int8_product(rows, scale, zero, self.weight, self.scales, self.zeros, self.bias)
        return result.unflatten(0, x.shape[:-1]).to(x.dtype)


def _int8_product(
    rows: Tensor,
    scale: Tensor,
    zero: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """(N, K) uint8 by the packed (J, K) int8 -> (N, J) float32."""
    return torch.ops.onednn.qlinear_pointwise(
        rows, scale, zero.to(torch.int32), weight, scales, zeros, bias,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


@functools.cache
def _holds_8_bits() -> bool:
    """
    Whether the largest products come out right. x86 without VNNI adds two of them in 16 bits, and
    what does not fit is cut off.
    """
    rows, weight = torch.full((1, 64), 255).to(torch.uint8), torch.full((16, 64), 127)
    found = _int8_product(
        rows,
        torch.ones(()),
        torch.zeros(()),
        torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None),
        torch.ones(16),
        torch.zeros(16, dtype=torch.int64),
        None,
    )
    return bool((found == 64 * 255 * 127).all())


def inference_form(model: nn.Module, *, int8: bool = False) -> nn.Module:
    """
    A copy of `model` that only detects, with the weights of now.

    * Norms that do not change are a part of the convolutions before them.
    * With mixed precision the weights of products have 16 bits, rather than being cast each time.
    * Of the tokens of a two-stage model those that become queries have boxes.
    * Linear layers and blocks of ResNets are oneDNN's on CPUs, where PyTorch is built with it.

    What it computes is the same but for rounding; with `int8` it is not.

    Args:
        model: a :class:`SetDetector`.
        int8: see :class:`Int8Linear`: the feed-forward networks and the projections of values and
            outputs of attention, which most of the work of the transformer is. What coordinates
            and scores come from is not rounded.

    Raises:
        InputError: with `int8`, of a model that is not on a CPU.
    """
    if int8 and (model.device.type != "cpu" or not _has_onednn()):
        raise InputError(
            "linear layers of 8 bits (int8, TEST.INT8) are for CPUs and a PyTorch with oneDNN; the "
            f"model is on {model.device}, oneDNN is {'' if _has_onednn() else 'not '}there"
        )
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d) and not isinstance(module, DeformConv2d):
            _fold_norm(module)
    if model.precision is not None:
        _cast_products(model)
    if int8:
        for layer in model.head.transformer.modules():
            for name in ("linear1", "linear2", "value_proj", "output_proj"):
                if isinstance(getattr(layer, name, None), nn.Linear):
                    setattr(layer, name, Int8Linear(getattr(layer, name)))
    if _has_onednn():
        use_onednn(model)
    model.head.transformer.all_tokens_propose = False
    model.only_detects = True
    model.register_load_state_dict_pre_hook(_refuse_weights)
    return model


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available()


def _fold_norm(conv: nn.Conv2d) -> None:
    """norm(conv(x)) -> conv(x) with other weights, in float64 meanwhile; detectron2's `norm`."""
    norm = getattr(conv, "norm", None)
    if getattr(norm, "running_mean", None) is None:
        return
    weight, bias = nn.utils.fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    conv.norm = nn.Identity()


def _cast_products(model: nn.Module) -> None:
    for module in model.modules():
        for kind, names in _PRODUCTS.items():
            if isinstance(module, kind) and not isinstance(module, DeformConv2d):
                for name in names:
                    if (parameter := getattr(module, name)) is not None:
                        parameter.data = parameter.data.to(model.precision)


def _refuse_weights(model: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    raise InputError(
        "the inference form of a model takes no weights: load them into the model itself and call "
        "its for_inference() again"
    )
