"""The encoder: deformable self-attention of all cells of all levels (Sec. 4.1)."""

from torch import Tensor, nn

from .add_norm import AddNorm, add_and_norm
from .dropout import Dropout
from .feed_forward import feed_forward
from .linear import Linear
from .memory import Memory, cell_centres, to_levels


class EncoderLayer(nn.Module):
    """Self-attention of some kind, then a feed-forward network; both post-norm."""

    def __init__(self, self_attn: nn.Module, d_model: int, dim_feedforward: int, dropout: float):
        """
        Args:
            self_attn: what the tokens read each other by, as the subclass calls it.
            dropout: share of what attention and network give that is dropped.
        """
        super().__init__()
        self.self_attn = self_attn
        self.dropout1, self.norm1 = Dropout(dropout), AddNorm(d_model)
        self.linear1, self.dropout2 = Linear(d_model, dim_feedforward), Dropout(dropout)
        self.linear2, self.dropout3 = Linear(dim_feedforward, d_model), Dropout(dropout)
        self.norm2 = AddNorm(d_model)

    def after_attention(self, src: Tensor, attended: Tensor) -> Tensor:
        """The tokens, and what each has read, (N, S, C) both -> the output of the layer."""
        src = add_and_norm(src, attended, self.dropout1, self.norm1)
        hidden = feed_forward(src, self.linear1, self.dropout2, self.linear2)
        return add_and_norm(src, hidden, self.dropout3, self.norm2)


class DeformableTransformerEncoderLayer(EncoderLayer):
    """:class:`MSDeformAttn` over all levels, then a feed-forward network; both post-norm."""

    def forward(
        self,
        src: Tensor,
        pos_embed: Tensor,
        level_reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """
        Args:
            src, pos_embed: (N, S, C).
            level_reference_points: (N, S, L, 2), (x, y) in [0, 1] of the padded level.
            spatial_shapes: (H_l, W_l) of each level.
            padding_mask: (N, S), True = padding; None for none.

        Returns:
            (N, S, C).
        """
        attended = self.self_attn(
            src + pos_embed, level_reference_points, src, spatial_shapes, padding_mask
        )
        return self.after_attention(src, attended)


class DeformableTransformerEncoder(nn.Module):
    """A stack of encoder layers; there is no final norm."""

    def __init__(self, layers: list[DeformableTransformerEncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: Memory, pos_embed: Tensor) -> Memory:
        """
        Args:
            memory: the projected maps.
            pos_embed: (N, S, C), position plus level embedding.
        """
        centres = cell_centres(memory.spatial_shapes, memory.valid_ratios)
        level_reference_points = to_levels(centres, memory.valid_ratios)
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(
                tokens,
                pos_embed,
                level_reference_points,
                memory.spatial_shapes,
                memory.padding_mask,
            )
        return memory.with_tokens(tokens)
