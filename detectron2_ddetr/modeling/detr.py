"""The transformer and the head of DETR (https://arxiv.org/abs/2005.12872)."""

import dataclasses

import torch
from torch import Tensor, nn

from .decoder import QuerySet
from .dense import DenseDecoder, DenseDecoderLayer, DenseEncoder, DenseEncoderLayer
from .head import DeformableDETRHead
from .linear import Linear
from .memory import Memory, flatten_maps
from .mlp import MLP
from .position_encoding import PositionEmbeddingSine
from .precision import at_least_float32
from .projector import PlainProjector
from .transformer import TokenHeads


class DenseTransformer(nn.Module):
    """
    Encoder and decoder that attend to all cells of one level. What is learned for each query is
    its position; its content starts at zero.
    """

    two_stage = False

    def __init__(
        self,
        d_model: int = 256,
        *,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        n_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
    ):
        super().__init__()
        self.d_model, self.num_decoder_layers = d_model, num_decoder_layers
        sizes = (d_model, n_heads, dim_feedforward, dropout)
        self.encoder = DenseEncoder([DenseEncoderLayer(*sizes) for _ in range(num_encoder_layers)])
        layers = [DenseDecoderLayer(*sizes) for _ in range(num_decoder_layers)]
        self.decoder = DenseDecoder(layers, d_model)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def make_query_embed(self, num_queries: int, content_dim: int) -> nn.Embedding:
        """The position of each query."""
        return nn.Embedding(num_queries, self.d_model)

    def keep_queries(self, num_queries: int) -> None:
        """As :meth:`DeformableTransformer.keep_queries`."""

    def encode(
        self, maps: list[Tensor], padding_masks: list[Tensor] | None, pos_embeds: list[Tensor]
    ) -> Memory:
        """
        Args:
            maps, pos_embeds: one (N, C, H, W).
            padding_masks: one (N, H, W) bool, True = padding; None for none.
        """
        memory = Memory.from_maps(maps, padding_masks)
        pos_embed = flatten_maps(pos_embeds).to(self.decoder.norm.weight.dtype)
        return self.encoder(dataclasses.replace(memory, pos_embed=pos_embed))

    def initial_queries(
        self, memory: Memory, query_embed: Tensor, heads: TokenHeads, num_extra: int = 0
    ) -> QuerySet:
        """As :meth:`DeformableTransformer.initial_queries`; queries have no reference."""
        query_pos = query_embed[None].expand(memory.tokens.shape[0], -1, -1)
        return QuerySet(torch.zeros_like(query_pos), query_pos, None)


class DETRHead(DeformableDETRHead):
    """
    Like :class:`DeformableDETRHead`, with one class head and one box head for all layers. Boxes
    are absolute, and a class more says that there is no object.
    """

    def __init__(
        self,
        *,
        input_proj: PlainProjector,
        transformer: DenseTransformer,
        num_classes: int,
        num_queries: int = 100,
    ):
        """
        Args:
            input_proj: map of the backbone -> map of the transformer.
            num_classes: K, without the one of no object.
            num_queries: Q.
        """
        super().__init__(
            input_proj=input_proj,
            transformer=transformer,
            num_classes=num_classes,
            num_queries=num_queries,
            # Differs from Deformable DETR: its encoding is of the centres of the cells.
            position_embedding=PositionEmbeddingSine(transformer.d_model // 2, offset=0.0),
        )

    def make_heads(self, num_classes: int) -> None:
        """Initialised as PyTorch does: no class is likelier than another at first."""
        d_model, layers = self.transformer.d_model, self.transformer.num_decoder_layers
        self.class_embed = nn.ModuleList([Linear(d_model, num_classes + 1)] * layers)
        self.bbox_embed = nn.ModuleList([MLP(d_model, d_model, 4, num_layers=3)] * layers)

    def class_probability(self, logits: Tensor) -> Tensor:
        """(..., K + 1), the last of them of no object, -> (..., K)."""
        return at_least_float32(logits).softmax(-1)[..., :-1]

    def update_reference(
        self, layer: int, query: Tensor, output: Tensor, reference_points: None
    ) -> tuple[Tensor, None]:
        """The boxes of a layer, which are relative to nothing."""
        return at_least_float32(self.bbox_embed[layer](output)).sigmoid(), None
