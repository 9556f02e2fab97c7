"""Softmax attention whose biases are read from tables, a head at a time, with its gradients."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .position_bias import AbsoluteBias, BiasProduct, RelativeBias
from .precision import at_least_float32, without_autocast

Bias = AbsoluteBias | RelativeBias | None
#: Attention weights of all images and heads up to which training keeps them for the backward
#: pass, 64 MB in float32. More are computed again there.
_KEPT = 2**24


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """
    The sum of the values of all keys by softmax(q k + bias), in the memory of one head's weights.

    Args:
        q: (N, M, H*W, D), scaled.
        k, v: (N, M, K, D).

    Returns:
        (N, H*W, M * D).
    """
    return _Attention.apply(type(bias), q, k, v, *(bias or ()))


def attend_at_once(q: Tensor, k: Tensor, v: Tensor, bias: Bias, dropout: nn.Module) -> Tensor:
    """
    :func:`attend` as its formula: for programs, which have no loops of unknown length, for those
    who count products, and where weights are dropped.
    """
    weights = dropout(softmax_weights(q, k, bias)).to(v.dtype)
    return (weights.transpose(2, 3) @ v).transpose(1, 2).flatten(2)


def softmax_weights(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """(N, M, K, H*W), of each query those of the keys: keys first, as the biases come."""
    logits = at_least_float32(k @ q.transpose(2, 3))
    return (logits if bias is None else logits + bias.whole()).softmax(dim=2)


class _Attention(torch.autograd.Function):
    """
    The weights of a head are exp(logits - m) / s, with m and s for each query. Divided by s are
    not they, but what they are multiplied with; and of what reaches the logits, w (d - sum(w d)),
    the sum is that of the output times its gradient (https://arxiv.org/abs/2205.14135, App. B).
    """

    @staticmethod
    def forward(ctx: Any, kind: type, q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        keep = any(ctx.needs_input_grad) and k.shape[2] * q[..., 0].numel() <= _KEPT
        bias = kind(*tables).by_head() if tables else None
        outputs, largest, sums, kept = [], [], [], []
        with without_autocast(q.device):
            for head in range(q.shape[1]):
                logits = _logits(q, k, bias, head)
                largest.append(logits.amax(1, keepdim=True))
                weights = logits.sub_(largest[head]).exp_()
                sums.append(weights.sum(1)[..., None])
                weights = weights.to(v.dtype)
                outputs.append((weights.transpose(1, 2) @ v[:, head]) / sums[head])
                if keep:
                    kept.append(weights)
                del logits, weights  # before those of the next head are made
        out = torch.cat(outputs, dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, *tables, *largest, *sums, *kept)
        ctx.kind, ctx.number = kind, len(tables)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *saved = ctx.saved_tensors
        heads, depth = q.shape[1], q.shape[3]
        tables, saved = saved[: ctx.number], saved[ctx.number :]
        largest, sums, kept = saved[:heads], saved[heads : 2 * heads], saved[2 * heads :]
        of_q, of_k, of_v = (torch.empty_like(t) for t in (q, k, v))
        bias = of_bias = None
        if tables:
            # What is made of the tables is large, and made again in a moment.
            tables = [t.detach().requires_grad_() for t in tables]
            with torch.enable_grad():
                whole = ctx.kind(*tables).by_head()
            bias = type(whole)(*(t.detach() for t in whole))
            of_bias = type(whole)(*map(torch.zeros_like, bias))
        with without_autocast(q.device):
            for head in range(heads):
                if kept:
                    weights = kept[head]
                else:
                    weights = _logits(q, k, bias, head).sub_(largest[head]).exp_().to(v.dtype)
                part = slice(head * depth, (head + 1) * depth)
                by = grad[..., part] / sums[head]
                dot = (by * out[..., part]).sum(2)[:, None]
                by = by.to(v.dtype)
                of_v[:, head] = weights @ by
                by = at_least_float32(v[:, head] @ by.transpose(1, 2)).sub_(dot).mul_(weights)
                if bias is not None:
                    bias.add_gradients(by, head, of_bias)
                by = by.to(k.dtype)
                of_q[:, head] = by.transpose(1, 2) @ k[:, head]
                of_k[:, head] = by @ q[:, head]
                del weights, by
        of_tables = torch.autograd.grad(whole, tables, of_bias) if tables else ()
        return None, of_q, of_k, of_v, *of_tables


def _logits(q: Tensor, k: Tensor, bias: AbsoluteBias | BiasProduct | None, head: int) -> Tensor:
    """(N, K, H*W), of one head."""
    logits = at_least_float32(k[:, head] @ q[:, head].transpose(1, 2))
    if bias is not None:
        bias.add_to(logits, head)
    return logits
