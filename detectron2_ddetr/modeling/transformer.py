"""The deformable transformer: encoder, decoder, and what their queries start from (Fig. 2)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import MultiheadAttention
from .decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
    QuerySet,
)
from .encoder import DeformableTransformerEncoder, DeformableTransformerEncoderLayer
from .linear import Linear
from .memory import Memory, flatten_maps
from .ms_deform_attn import MSDeformAttn
from .precision import at_least_float32


class TokenHeads(NamedTuple):
    """What an encoder proposes boxes with: (..., C) -> logits (..., K), deltas (..., 4)."""

    classify: Callable[[Tensor], Tensor]
    refine: Callable[[Tensor], Tensor]


class DeformableTransformer(nn.Module):
    """
    Encoder and decoder with learned queries: each starts from a point that is a linear function
    of its learned position (Sec. 4.1).

    A variant with other queries overrides :meth:`initial_queries`; see :mod:`.two_stage`.
    """

    #: Whether the encoder proposes boxes, which takes one more class head and box head.
    two_stage = False
    #: Whether all tokens are proposals, of which its class head says no more than that there is an
    #: object; or those that become queries, of which it says the class. To detect takes no others.
    all_tokens_propose = True

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
        maps, sizes = (d_model, n_levels, n_heads), (d_model, dim_feedforward, dropout)
        self.encoder = DeformableTransformerEncoder(
            [
                DeformableTransformerEncoderLayer(MSDeformAttn(*maps, enc_n_points), *sizes)
                for _ in range(num_encoder_layers)
            ]
        )
        self.decoder = self.make_decoder(
            [
                DeformableTransformerDecoderLayer(
                    MSDeformAttn(*maps, dec_n_points),
                    MultiheadAttention(d_model, n_heads, dropout),
                    *sizes,
                )
                for _ in range(num_decoder_layers)
            ]
        )
        # The encoder alone reads it: without one there would be no gradient.
        level_embed = torch.empty(n_levels, d_model)
        self.level_embed = nn.Parameter(level_embed, requires_grad=num_encoder_layers > 0)
        self.make_query_layers()
        self.reset_parameters()

    def make_decoder(
        self, layers: list[DeformableTransformerDecoderLayer]
    ) -> DeformableTransformerDecoder:
        """The decoder of these layers."""
        return DeformableTransformerDecoder(layers)

    def make_query_embed(self, num_queries: int, content_dim: int) -> nn.Embedding | None:
        """
        What is learned for each query, apart from the layers of :meth:`make_query_layers`:
        position, then content. None for nothing.

        Args:
            content_dim: channels of the content that are learned.
        """
        return nn.Embedding(num_queries, self.d_model + content_dim)

    def keep_queries(self, num_queries: int) -> None:
        """Forgets what is learned here for queries after the first `num_queries`: nothing."""

    def make_query_layers(self) -> None:
        """Create the layers that :meth:`initial_queries` needs."""
        self.reference_points = Linear(self.d_model, 2)

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
        self, maps: list[Tensor], padding_masks: list[Tensor] | None, pos_embeds: list[Tensor]
    ) -> Memory:
        """
        Args:
            maps, pos_embeds: one (N, C, H_l, W_l) per level, from high to low resolution.
            padding_masks: one (N, H_l, W_l) bool per level, True = padding; None for none.
        """
        level_embed = self.level_embed.unbind()
        if len(maps) != len(level_embed):
            raise ValueError(f"got {len(maps)} levels, the transformer has {len(level_embed)}")
        # In the type of the tokens, so that no layer casts their sum.
        pos_embeds = [
            (pos.to(level.dtype) + level.view(1, -1, 1, 1)).to(tokens.dtype)
            for pos, level, tokens in zip(pos_embeds, level_embed, maps)
        ]
        return self.encoder(Memory.from_maps(maps, padding_masks), flatten_maps(pos_embeds))

    def initial_queries(
        self, memory: Memory, query_embed: Tensor, heads: TokenHeads, num_extra: int = 0
    ) -> QuerySet:
        """
        Args:
            memory: the encoder's output.
            query_embed: (Q, ...), the rows of :meth:`make_query_embed` for the queries wanted.
            heads: those of the encoder, for two-stage models.
            num_extra: how many queries of Q a two-stage model takes besides its `num_queries`.
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

    def query_position(self, reference_points: Tensor) -> Tensor | None:
        """
        Positions of queries that start from given boxes, as denoising ones do.

        Args:
            reference_points: (N, P, 4), (cx, cy, w, h).

        Returns:
            (N, P, C); None where the decoder makes positions of boxes.

        Raises:
            ValueError: for queries that start from points, which a box is not one of.
        """
        raise ValueError(
            "queries of this model start from points: denoising needs a two-stage transformer or "
            "one with anchors"
        )
