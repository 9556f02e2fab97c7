"""Multi-head attention, of whose time in training on CPUs the dropout of weights is most."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout


class MultiheadAttention(nn.MultiheadAttention):
    """
    :class:`torch.nn.MultiheadAttention` among (N, ..., C), whose weights have the official names;
    with the same state of the generator it drops the same weights of attention.
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
        if need_weights or options or not dropout.draws(query):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, **options
            )
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases)
        )
        logits = (query * self.head_dim**-0.5) @ key.transpose(2, 3)
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
            logits = logits.masked_fill(attn_mask, -torch.inf)
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask[:, None, None], -torch.inf)
        attended = dropout(logits.softmax(-1)) @ value
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None
