"""Layers of DETR's transformer: every query attends to every key (Sec. A.3 of its paper)."""

from collections.abc import Sequence

from torch import Tensor, nn

from .add_norm import AddNorm, add_and_norm
from .attention import MultiheadAttention
from .decoder import QuerySet, UpdateReference
from .dropout import Dropout
from .encoder import EncoderLayer
from .feed_forward import feed_forward
from .linear import Linear
from .memory import Memory


class DenseEncoderLayer(EncoderLayer):
    """
    Self-attention of all cells by a :class:`.MultiheadAttention`, then a feed-forward network; both
    post-norm.
    """

    def __init__(self, d_model: int, n_heads: int, dim_feedforward: int, dropout: float):
        super().__init__(
            MultiheadAttention(d_model, n_heads, dropout), d_model, dim_feedforward, dropout
        )

    def forward(self, src: Tensor, pos_embed: Tensor, padding_mask: Tensor | None) -> Tensor:
        """
        Args:
            src, pos_embed: (N, S, C). Only queries and keys have a position.
            padding_mask: (N, S) bool, True = padding, which no cell attends to; None for none.

        Returns:
            (N, S, C).
        """
        # Without weights to return it is `scaled_dot_product_attention`; see `capture` for maps.
        positioned = src + pos_embed
        attended, _ = self.self_attn(
            positioned, positioned, src, key_padding_mask=padding_mask, need_weights=False
        )
        return self.after_attention(src, attended)


class DenseEncoder(nn.Module):
    """A stack of encoder layers; there is no final norm."""

    def __init__(self, layers: Sequence[DenseEncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: Memory) -> Memory:
        """
        Args:
            memory: the projected map, with its positions.
        """
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.pos_embed, memory.padding_mask)
        return memory.with_tokens(tokens)


class DenseDecoderLayer(nn.Module):
    """
    Self-attention among queries, cross-attention to all cells, feed-forward network; all post-norm.

    Attribute names and the numbering of norms are those of DETR.
    """

    def __init__(self, d_model: int, n_heads: int, dim_feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, n_heads, dropout)
        self.multihead_attn = MultiheadAttention(d_model, n_heads, dropout)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = (AddNorm(d_model) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Memory, attn_mask: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            query, query_pos: (N, Q, C).
            memory: the encoder's output, with its positions.
            attn_mask: as in :class:`QuerySet`.

        Returns:
            (N, Q, C).
        """
        own = query + query_pos
        seen, _ = self.self_attn(own, own, query, attn_mask=attn_mask, need_weights=False)
        query = add_and_norm(query, seen, self.dropout, self.norm1)
        read, _ = self.multihead_attn(
            query + query_pos,
            memory.tokens + memory.pos_embed,
            memory.tokens,
            key_padding_mask=memory.padding_mask,
            need_weights=False,
        )
        query = add_and_norm(query, read, self.dropout, self.norm2)
        hidden = feed_forward(query, self.linear1, self.dropout, self.linear2)
        return add_and_norm(query, hidden, self.dropout, self.norm3)


class DenseDecoder(nn.Module):
    """A stack of decoder layers without references; the heads read their normalised states."""

    def __init__(self, layers: Sequence[DenseDecoderLayer], d_model: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self, queries: QuerySet, memory: Memory, update_reference: UpdateReference
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As :meth:`DeformableTransformerDecoder.forward`; there are no references."""
        query, hs, boxes = queries.content, [], []
        for i, layer in enumerate(self.layers):
            query = layer(query, queries.query_pos, memory, queries.attn_mask)
            output = self.norm(query)
            hs.append(output)
            boxes.append(update_reference(i, query, output, queries.reference_points)[0])
        return hs, boxes, []
