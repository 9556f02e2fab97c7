"""The transformer of DINO: boxes from the encoder, learned content, positions that follow boxes."""

from torch import Tensor, nn

from .anchors import AnchorDecoder
from .decoder import DeformableTransformerDecoderLayer
from .two_stage import TwoStageDeformableTransformer


class DINOTransformer(TwoStageDeformableTransformer):
    """
    Two-stage with mixed query selection (https://arxiv.org/abs/2203.03605, Sec. 3.4): the encoder
    classifies, its best tokens of whatever class give the first boxes, and only they have a loss.
    """

    all_tokens_propose = False

    def __init__(self, num_queries: int = 900, **kwargs):
        """
        Args:
            num_queries: Q, see :class:`TwoStageDeformableTransformer`.
            kwargs: of :class:`DeformableTransformer`.
        """
        super().__init__(num_queries, mixed_selection=True, **kwargs)

    def make_decoder(self, layers: list[DeformableTransformerDecoderLayer]) -> AnchorDecoder:
        return AnchorDecoder(layers, self.d_model, content_scale=False, norm=True)

    def make_position_layers(self) -> None:
        """None: the decoder makes positions of boxes."""

    def make_query_embed(self, num_queries: int, content_dim: int) -> nn.Embedding:
        content = super().make_query_embed(num_queries, content_dim)
        nn.init.xavier_uniform_(content.weight)  # a part of the transformer in the authors' code
        return content

    def rank(self, class_logits: Tensor) -> Tensor:
        return class_logits.max(dim=-1).values

    def query_position(self, reference_points: Tensor) -> None:
        return None
