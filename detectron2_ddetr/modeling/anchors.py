"""Queries that are boxes: learned anchors (DAB-DETR), and positions that follow the boxes."""

from torch import Tensor, nn

from .decoder import DeformableTransformerDecoder, DeformableTransformerDecoderLayer, QuerySet
from .memory import Memory
from .mlp import MLP
from .position_encoding import box_position_encoding
from .precision import at_least_float32
from .transformer import DeformableTransformer, TokenHeads


class AnchorDecoder(DeformableTransformerDecoder):
    """
    The position of a query is a function of the box that it looks around
    (https://arxiv.org/abs/2201.12329, Sec. 3.3).
    """

    def __init__(
        self,
        layers: list[DeformableTransformerDecoderLayer],
        d_model: int = 256,
        content_scale: bool = True,
        norm: bool = False,
    ):
        """
        Args:
            layers: of the decoder.
            d_model: C.
            content_scale: from the second layer on, a function of its content scales the position
                of a query (DAB-DETR; not in DINO).
            norm: normalise what the heads read. What moves the references is not normalised, as
                in the authors' code.
        """
        super().__init__(layers)
        self.d_model = d_model
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, num_layers=2)
        if content_scale:
            self.query_scale = MLP(d_model, d_model, d_model, num_layers=2)
        else:
            self.query_scale = None
        if norm:
            self.norm = nn.LayerNorm(d_model)

    def query_pos(
        self, layer: int, query: Tensor, queries: QuerySet, level_reference_points: Tensor
    ) -> Tensor:
        # In the frame of the padded finest level, as in the authors' code.
        boxes = level_reference_points[:, :, 0]
        encoded = box_position_encoding(boxes[..., [1, 0, 2, 3]], self.d_model // 2)
        position = self.ref_point_head(encoded.to(query.dtype))
        if layer == 0 or self.query_scale is None:
            return position
        return self.query_scale(query) * position


class AnchorTransformer(DeformableTransformer):
    """
    Encoder and decoder with learned boxes as references and learned content: the transformer of
    DAB-Deformable-DETR and DN-Deformable-DETR.
    """

    def __init__(self, num_queries: int = 300, **kwargs):
        """
        Args:
            num_queries: how many anchors there are, those of groups that only train included.
            kwargs: of :class:`DeformableTransformer`.
        """
        self.num_anchors = num_queries
        super().__init__(**kwargs)

    def make_decoder(self, layers: list[DeformableTransformerDecoderLayer]) -> AnchorDecoder:
        return AnchorDecoder(layers, self.d_model)

    def make_query_layers(self) -> None:
        #: Logits of (cx, cy, w, h).
        self.refpoint_embed = nn.Embedding(self.num_anchors, 4)

    def reset_query_layers(self) -> None:
        nn.init.normal_(self.refpoint_embed.weight)

    def make_query_embed(self, num_queries: int, content_dim: int) -> nn.Embedding:
        return nn.Embedding(num_queries, content_dim)

    def keep_queries(self, num_queries: int) -> None:
        """Forgets the anchors after the first `num_queries`."""
        anchors = self.refpoint_embed.weight.detach()[:num_queries]
        self.refpoint_embed = nn.Embedding.from_pretrained(anchors.clone())

    def initial_queries(
        self, memory: Memory, query_embed: Tensor, heads: TokenHeads, num_extra: int = 0
    ) -> QuerySet:
        anchors = self.refpoint_embed.weight[: len(query_embed)]
        content, reference_points = (
            x[None].expand(memory.tokens.shape[0], -1, -1)
            for x in (query_embed, at_least_float32(anchors).sigmoid())
        )
        return QuerySet(content, None, reference_points)

    def query_position(self, reference_points: Tensor) -> None:
        return None
