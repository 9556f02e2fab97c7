"""The deformable transformer: encoder, decoder and their layers (Sec. 4, Fig. 2 of the paper)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import Memory, cell_centres, flatten_maps, to_levels
from .ms_deform_attn import MSDeformAttn
from .precision import at_least_float32

#: (layer, query (N, Q, C), reference_points (N, Q, 2 or 4)) -> boxes (N, Q, 4) of that layer,
#: reference_points of the next one.
UpdateReference = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
#: tokens (N, S, C) -> class logits (N, S, K), box deltas (N, S, 4).
ScoreTokens = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class QuerySet:
    """
    What the decoder starts from.

    Attributes:
        content: (N, Q, C).
        query_pos: (N, Q, C).
        reference_points: (N, Q, 2), (x, y), or (N, Q, 4), (cx, cy, w, h), in the valid image.
        attn_mask: (Q, Q) or (N * M, Q, Q) bool, True = the row may not attend to the column;
            None lets every query see every other.
        proposals: what the encoder predicted, {"pred_logits", "pred_boxes"}, where it did.
    """

    content: Tensor
    query_pos: Tensor
    reference_points: Tensor
    attn_mask: Tensor | None = None
    proposals: dict[str, Tensor] | None = None


class DeformableTransformerEncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward network; both post-norm."""

    def __init__(
        self,
        d_model: int = 256,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
    ):
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout2 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.dropout3 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(
        self,
        src: Tensor,
        pos_embed: Tensor,
        level_reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        padding_mask: Tensor,
    ) -> Tensor:
        """
        Args:
            src, pos_embed: (N, S, C).
            level_reference_points: (N, S, L, 2), (x, y) in [0, 1] of the padded level.
            spatial_shapes: (H_l, W_l) of each level.
            padding_mask: (N, S), True = padding.

        Returns:
            (N, S, C).
        """
        attended = self.self_attn(
            src + pos_embed, level_reference_points, src, spatial_shapes, padding_mask
        )
        src = self.norm1(src + self.dropout1(attended))
        hidden = self.linear2(self.dropout2(F.relu(self.linear1(src))))
        return self.norm2(src + self.dropout3(hidden))


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


class DeformableTransformerDecoderLayer(nn.Module):
    """
    Self-attention among queries, deformable cross-attention, feed-forward network; all post-norm.

    The numbering of norms and dropouts is the official one: 2 belongs to self-attention, 1 to
    cross-attention.
    """

    def __init__(
        self,
        d_model: int = 256,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
    ):
        super().__init__()
        self.cross_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, n_heads, dropout=dropout, batch_first=True)
        self.dropout2 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout3 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.dropout4 = nn.Dropout(dropout)
        self.norm3 = nn.LayerNorm(d_model)

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
        query = self.norm2(query + self.dropout2(attended))
        attended = self.cross_attn(
            query + query_pos,
            level_reference_points,
            memory.tokens,
            memory.spatial_shapes,
            memory.padding_mask,
        )
        query = self.norm1(query + self.dropout1(attended))
        hidden = self.linear2(self.dropout3(F.relu(self.linear1(query))))
        return self.norm3(query + self.dropout4(hidden))


class DeformableTransformerDecoder(nn.Module):
    """
    A stack of decoder layers that hand references on; there is no final norm.

    Variants override :meth:`query_pos` (positions that follow the boxes, DAB-DETR) or pass
    another `update_reference` (look forward twice, DINO).
    """

    def __init__(self, layers: list[DeformableTransformerDecoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def query_pos(self, layer: int, queries: QuerySet, reference_points: Tensor) -> Tensor:
        """(N, Q, C), the position of the queries at `layer`: the same for all layers."""
        return queries.query_pos

    def forward(
        self, queries: QuerySet, memory: Memory, update_reference: UpdateReference
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Returns:
            hs: the state of the queries after each layer, (N, Q, C).
            boxes: the boxes of each layer, (N, Q, 4), (cx, cy, w, h) in the valid image.
            references: what each layer looked around, (N, Q, 2 or 4), in the valid image.
        """
        query, reference_points = queries.content, queries.reference_points
        hs, boxes, references = [], [], []
        for i, layer in enumerate(self.layers):
            references.append(reference_points)
            query = layer(
                query,
                self.query_pos(i, queries, reference_points),
                to_levels(reference_points, memory.valid_ratios),
                memory,
                queries.attn_mask,
            )
            layer_boxes, reference_points = update_reference(i, query, reference_points)
            hs.append(query)
            boxes.append(layer_boxes)
        return hs, boxes, references


class DeformableTransformer(nn.Module):
    """
    Encoder and decoder with learned queries: each starts from a point that is a linear function
    of its learned position (Sec. 4.1).

    A variant with other queries overrides :meth:`initial_queries`; see :mod:`.two_stage`.
    """

    #: Whether the encoder proposes boxes, which takes one more class head and box head.
    two_stage = False

    def __init__(
        self,
        d_model: int = 256,
        n_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        n_levels: int = 4,
        enc_n_points: int = 4,
        dec_n_points: int = 4,
    ):
        super().__init__()
        self.d_model = d_model
        self.num_decoder_layers = num_decoder_layers
        shared = (d_model, dim_feedforward, dropout, n_levels, n_heads)
        self.encoder = DeformableTransformerEncoder(
            [
                DeformableTransformerEncoderLayer(*shared, enc_n_points)
                for _ in range(num_encoder_layers)
            ]
        )
        self.decoder = DeformableTransformerDecoder(
            [
                DeformableTransformerDecoderLayer(*shared, dec_n_points)
                for _ in range(num_decoder_layers)
            ]
        )
        # The encoder alone reads it: without one there would be no gradient.
        level_embed = torch.empty(n_levels, d_model)
        self.level_embed = nn.Parameter(level_embed, requires_grad=num_encoder_layers > 0)
        self.make_query_layers()
        self.reset_parameters()

    def make_query_layers(self) -> None:
        """Create the layers that :meth:`initial_queries` needs."""
        self.reference_points = nn.Linear(self.d_model, 2)

    def reset_query_layers(self) -> None:
        """What these layers want beyond Xavier weights."""
        nn.init.zeros_(self.reference_points.bias)

    def reset_parameters(self) -> None:
        """Xavier uniform weights everywhere; the attention modules then set their own."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        self.reset_query_layers()

    def encode(
        self, maps: list[Tensor], padding_masks: list[Tensor], pos_embeds: list[Tensor]
    ) -> Memory:
        """
        Args:
            maps, pos_embeds: one (N, C, H_l, W_l) per level, from high to low resolution.
            padding_masks: one (N, H_l, W_l) bool per level, True = padding.
        """
        level_embed = self.level_embed.unbind()
        if len(maps) != len(level_embed):
            raise ValueError(f"got {len(maps)} levels, the transformer has {len(level_embed)}")
        # In the type of the weights, which the encoder multiplies them with.
        pos_embeds = [
            pos.to(level.dtype) + level.view(1, -1, 1, 1)
            for pos, level in zip(pos_embeds, level_embed)
        ]
        return self.encoder(Memory.from_maps(maps, padding_masks), flatten_maps(pos_embeds))

    def initial_queries(
        self, memory: Memory, query_embed: Tensor | None, score_tokens: ScoreTokens
    ) -> QuerySet:
        """
        Args:
            memory: the encoder's output.
            query_embed: (Q, 2C) learned: position, then content. None in two-stage models.
            score_tokens: the heads of the encoder, for two-stage models.
        """
        num_images = memory.tokens.shape[0]
        # Contiguous: rows of 2C look to torch.export like C times an example batch of two, which it
        # then makes a condition of the program.
        query_pos, content = (
            half.contiguous()[None].expand(num_images, -1, -1)
            for half in query_embed.split(self.d_model, dim=1)
        )
        # A reference must not be rounded to 16 bits.
        reference_points = at_least_float32(self.reference_points(query_pos)).sigmoid()
        return QuerySet(content, query_pos, reference_points)
