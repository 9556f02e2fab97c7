"""Multi-head attention, with what PyTorch's own is slow at in training on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout


class MultiheadAttention(nn.MultiheadAttention):
    """
    :class:`torch.nn.MultiheadAttention` among (N, ..., C), whose weights have the official names;
    with the same state of the generator it drops the same weights of attention.

    In training on CPUs the weights are dropped faster, and 16 bits attend in float32, where
    PyTorch's function takes half the time for some hundred queries.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0):
        super().__init__(d_model, n_heads, dropout=dropout, batch_first=True)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            query: (N, Q, C).
            key, value: (N, S, C).
            key_padding_mask: (N, S) bool, True = no query attends to it.
            need_weights: also return what the queries attend to, which takes longer.
            attn_mask: (Q, S) or (N * M, Q, S) bool, True = the query does not attend to the key.
                Every query attends to one at least.
            options: of :class:`torch.nn.MultiheadAttention`.

        Returns:
            (N, Q, C), and the weights (N, Q, S), the mean of the heads, or None.
        """
        dropout = Dropout(self.dropout).train(self.training)
        draws = dropout.draws(query)
        if need_weights or options or not (draws or self._widens(query)):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, **options
            )
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases)
        )
        mask = attn_mask
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, None]
            mask = padding if mask is None else mask | padding
        if draws:
            logits = (query * self.head_dim**-0.5) @ key.transpose(2, 3)
            if mask is not None:
                logits = logits.masked_fill(mask, -torch.inf)
            attended = dropout(logits.softmax(-1)) @ value
        else:
            with torch.autocast("cpu", enabled=False):
                attended = F.scaled_dot_product_attention(
                    query.float(), key.float(), value.float(), None if mask is None else ~mask
                )
        attended = attended.to(value.dtype).transpose(1, 2).flatten(2)
        # Not called, as in PyTorch's, which reads its weights too: one way in both modes.
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias), None

    def _widens(self, query: Tensor) -> bool:
        """Whether it would be trained in 16 bits on a CPU, without dropout."""
        if not self.training or self.dropout or torch.compiler.is_compiling():
            return False
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else query.dtype
        return query.device.type == "cpu" and dtype.itemsize == 2
