"""Two-stage Deformable DETR: the encoder proposes the boxes that the decoder refines (Sec. 4.2)."""

import torch
from torch import Tensor, nn

from .decoder import QuerySet
from .linear import Linear
from .memory import Memory, cell_centres
from .position_encoding import box_position_encoding
from .precision import at_least_float32
from .tracing import at_most
from .transformer import DeformableTransformer, TokenHeads

#: The class logit that ranks proposals. The encoder is trained with every target relabelled 0,
#: so its class head is a foreground score in channel 0; official checkpoints rely on it.
OBJECTNESS_CHANNEL = 0


class TwoStageDeformableTransformer(DeformableTransformer):
    """Like :class:`DeformableTransformer`, but queries come from the best scoring tokens."""

    two_stage = True

    def __init__(self, num_queries: int = 300, mixed_selection: bool = False, **kwargs):
        """
        Args:
            num_queries: Q, proposals that become queries; fewer where there are fewer tokens.
            mixed_selection: the content of the queries is learned, as in a one-stage model; only
                their references and positions come from proposals (DINO, Sec. 3.4).
            kwargs: of :class:`DeformableTransformer`.
        """
        super().__init__(**kwargs)
        self.num_queries = num_queries
        self.mixed_selection = mixed_selection

    def make_query_embed(self, num_queries: int, content_dim: int) -> nn.Embedding | None:
        return nn.Embedding(num_queries, content_dim) if self.mixed_selection else None

    def make_query_layers(self) -> None:
        self.enc_output = Linear(self.d_model, self.d_model)
        self.enc_output_norm = nn.LayerNorm(self.d_model)
        self.make_position_layers()

    def make_position_layers(self) -> None:
        """Create the layers that positions and content of queries come from."""
        self.pos_trans = Linear(self.d_model * 2, self.d_model * 2)
        self.pos_trans_norm = nn.LayerNorm(self.d_model * 2)

    def reset_query_layers(self) -> None:
        """Nothing: their biases keep PyTorch's default, as in the official code."""

    def rank(self, class_logits: Tensor) -> Tensor:
        """(N, S, K) -> (N, S), by which the best tokens are taken."""
        return class_logits[..., OBJECTNESS_CHANNEL]

    def initial_queries(
        self,
        memory: Memory,
        query_embed: Tensor | None,
        heads: TokenHeads,
        num_extra: int = 0,
    ) -> QuerySet:
        proposal_logits, usable = proposals(memory)
        tokens = memory.tokens.masked_fill(~usable[..., None], 0.0)
        tokens = self.enc_output_norm(self.enc_output(tokens))
        class_logits = heads.classify(tokens)

        # Differs from the official code: where an image has fewer tokens than queries, all of
        # them become queries, because the official top-k crashes there.
        num_queries = at_most(self.num_queries + num_extra, class_logits.shape[1])
        top = self.rank(class_logits).topk(num_queries, dim=1).indices
        if not self.all_tokens_propose:
            class_logits, tokens = _rows(class_logits, top), _rows(tokens, top)
            proposal_logits = _rows(proposal_logits, top)
        box_logits = at_least_float32(heads.refine(tokens)) + proposal_logits
        chosen = _rows(box_logits, top) if self.all_tokens_propose else box_logits
        # Detached: the encoder learns boxes from its own loss only.
        reference_points = chosen.detach().sigmoid()
        if self.mixed_selection:
            query_pos = self.query_position(reference_points)
            content = query_embed[:num_queries].expand(tokens.shape[0], -1, -1)
        else:
            query_pos, content = self.position_and_content(reference_points)
        return QuerySet(
            content,
            query_pos,
            reference_points,
            proposals={"pred_logits": class_logits, "pred_boxes": box_logits.sigmoid()},
            selected=top,
        )

    def position_and_content(self, reference_points: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Q, 4), (cx, cy, w, h) -> (N, Q, C) each (Sec. A.4)."""
        encoded = box_position_encoding(reference_points, self.d_model // 2)
        encoded = self.pos_trans_norm(self.pos_trans(encoded.to(self.pos_trans.weight.dtype)))
        # Contiguous for torch.export, as in DeformableTransformer.initial_queries.
        query_pos, content = (half.contiguous() for half in encoded.chunk(2, dim=-1))
        return query_pos, content

    def query_position(self, reference_points: Tensor) -> Tensor | None:
        return self.position_and_content(reference_points)[0]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(N, S, C), (N, Q) -> (N, Q, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def proposals(memory: Memory) -> tuple[Tensor, Tensor]:
    """
    One box per token: centred on its cell, 0.05 * 2^l of the image wide and high (Sec. A.4).

    Returns:
        logits: (N, S, 4), logit of (cx, cy, w, h) in the valid image; +inf where not usable,
            so that the box is (1, 1, 1, 1) without gradient.
        usable: (N, S) bool: not padding, and all four numbers inside (0.01, 0.99).
    """
    centres = cell_centres(memory.spatial_shapes, memory.valid_ratios)
    sizes = [
        centres.new_full((height * width, 2), 0.05 * 2.0**level)
        for level, (height, width) in enumerate(memory.spatial_shapes)
    ]
    boxes = torch.cat((centres, torch.cat(sizes).expand_as(centres)), dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.padding_mask is not None:
        usable = usable & ~memory.padding_mask
    return boxes.logit().masked_fill(~usable[..., None], float("inf")), usable
