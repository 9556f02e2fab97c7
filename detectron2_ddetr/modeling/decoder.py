"""The decoder: queries that look at each other and, around their references, at the maps."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .add_norm import AddNorm, add_and_norm
from .attention import MultiheadAttention
from .dropout import Dropout
from .feed_forward import feed_forward
from .linear import Linear
from .memory import Memory, to_levels
from .ms_deform_attn import MSDeformAttn

#: (layer, query (N, Q, C), output (N, Q, C), reference_points (N, Q, 2 or 4)) -> boxes (N, Q, 4) of
#: that layer, reference_points of the next one. References are None where queries have none.
UpdateReference = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass
class QuerySet:
    """
    What the decoder starts from.

    Attributes:
        content: (N, Q, C).
        query_pos: (N, Q, C); None where the decoder makes positions of boxes.
        reference_points: (N, Q, 2), (x, y), or (N, Q, 4), (cx, cy, w, h), in the valid image; None
            for queries that look everywhere.
        attn_mask: (Q, Q) or (N * M, Q, Q) bool, True = the row may not attend to the column;
            None lets every query see every other.
        proposals: what the encoder predicted, {"pred_logits", "pred_boxes"}, where it did.
        selected: (N, Q), the tokens that became queries, where the encoder proposes.
    """

    content: Tensor
    query_pos: Tensor | None
    reference_points: Tensor | None
    attn_mask: Tensor | None = None
    proposals: dict[str, Tensor] | None = None
    selected: Tensor | None = None


class DeformableTransformerDecoderLayer(nn.Module):
    """
    Self-attention among queries, deformable cross-attention, feed-forward network; all post-norm.

    The numbering of norms and dropouts is the official one: 2 belongs to self-attention, 1 to
    cross-attention.
    """

    def __init__(
        self,
        cross_attn: MSDeformAttn,
        self_attn: MultiheadAttention,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
    ):
        """
        Args:
            cross_attn: what queries read the maps by.
            self_attn: what they read each other by.
            dropout: share of what attentions and network give that is dropped.
        """
        super().__init__()
        self.cross_attn = cross_attn
        self.dropout1, self.norm1 = Dropout(dropout), AddNorm(d_model)
        self.self_attn = self_attn
        self.dropout2, self.norm2 = Dropout(dropout), AddNorm(d_model)
        self.linear1, self.dropout3 = Linear(d_model, dim_feedforward), Dropout(dropout)
        self.linear2, self.dropout4 = Linear(dim_feedforward, d_model), Dropout(dropout)
        self.norm3 = AddNorm(d_model)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        level_reference_points: Tensor,
        memory: Memory,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query, query_pos: (N, Q, C).
            level_reference_points: (N, Q, L, 2 or 4) in [0, 1] of the padded level.
            memory: the encoder's output.
            attn_mask: as in :class:`QuerySet`.

        Returns:
            (N, Q, C).
        """
        positioned = query + query_pos
        attended, _ = self.self_attn(
            positioned, positioned, query, attn_mask=attn_mask, need_weights=False
        )
        query = add_and_norm(query, attended, self.dropout2, self.norm2)
        attended = self.cross_attn(
            query + query_pos,
            level_reference_points,
            memory.tokens,
            memory.spatial_shapes,
            memory.padding_mask,
        )
        query = add_and_norm(query, attended, self.dropout1, self.norm1)
        hidden = feed_forward(query, self.linear1, self.dropout3, self.linear2)
        return add_and_norm(query, hidden, self.dropout4, self.norm3)


class DeformableTransformerDecoder(nn.Module):
    """
    A stack of decoder layers that hand references on; there is no final norm.

    Variants override :meth:`query_pos` (positions that follow the boxes, see :mod:`.anchors`) and
    `norm`, of what the heads read.
    """

    def __init__(self, layers: list[DeformableTransformerDecoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity()

    def query_pos(
        self, layer: int, query: Tensor, queries: QuerySet, level_reference_points: Tensor
    ) -> Tensor:
        """
        (N, Q, C), the position of the queries at `layer`: the same for all layers.

        Args:
            query: (N, Q, C), their content there.
            queries: what they started from.
            level_reference_points: (N, Q, L, 2 or 4), what they look around.
        """
        return queries.query_pos

    def forward(
        self, queries: QuerySet, memory: Memory, update_reference: UpdateReference
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Returns:
            hs: the state of the queries after each layer as the heads read it, (N, Q, C).
            boxes: the boxes of each layer, (N, Q, 4), (cx, cy, w, h) in the valid image.
            references: what each layer looked around, (N, Q, 2 or 4), in the valid image.
        """
        query, reference_points = queries.content, queries.reference_points
        hs, boxes, references = [], [], []
        for i, layer in enumerate(self.layers):
            looked_around = reference_points
            if reference_points is not queries.reference_points:
                # A reference that a layer has moved learns from boxes only, if at all.
                looked_around = reference_points.detach()
            references.append(looked_around)
            level_reference_points = to_levels(looked_around, memory.valid_ratios)
            query = layer(
                query,
                self.query_pos(i, query, queries, level_reference_points),
                level_reference_points,
                memory,
                queries.attn_mask,
            )
            output = self.norm(query)
            layer_boxes, reference_points = update_reference(i, query, output, reference_points)
            hs.append(output)
            boxes.append(layer_boxes)
        return hs, boxes, references
