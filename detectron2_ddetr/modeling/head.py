"""DeformableDETRHead: backbone maps in, class logits and boxes of every decoder layer out."""

import copy
import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .box_ops import shift_box
from .denoising import Denoising
from .few_rows import learn_from_few_rows
from .linear import Linear
from .loss_task import Targets
from .memory import Memory
from .mlp import MLP
from .position_encoding import PositionEmbeddingSine
from .precision import at_least_float32
from .projector import FeatureProjector
from .query_groups import OneToMany, QueryGroup, attention_mask
from .transformer import DeformableTransformer, QuerySet, TokenHeads


def resize_padding_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """
    The mask of one level: the full mask sampled at the nearest pixel, not `ceil(h / stride)`.

    Args:
        padding_mask: (N, H, W) bool, True = padding, of the input image.
        size: (H_l, W_l).
    """
    return F.interpolate(padding_mask[None].float(), size=size, mode="nearest")[0].bool()


def _no_padding(level: Tensor) -> Tensor:
    """(N, C, H, W) -> (1, H, W) bool, one number expanded, which is that of all N images."""
    return torch.zeros(1, 1, 1, dtype=torch.bool, device=level.device).expand(1, *level.shape[2:])


class DeformableDETRHead(nn.Module):
    """
    Projection, transformer, and the class and box heads of all layers.

    Attribute names equal the keys of official checkpoints.
    """

    def __init__(
        self,
        *,
        input_proj: FeatureProjector,
        transformer: DeformableTransformer,
        num_classes: int,
        num_queries: int = 300,
        with_box_refine: bool = False,
        look_forward_twice: bool = False,
        shared_heads: bool | None = None,
        one_to_many: OneToMany | None = None,
        denoising: Denoising | None = None,
        position_embedding: PositionEmbeddingSine | None = None,
        inverse_sigmoid_eps: float = 1e-5,
    ):
        """
        Args:
            input_proj: maps of the backbone -> maps of the transformer.
            transformer: its `two_stage` says whether the encoder has heads of its own.
            num_classes: K; there is no background class.
            num_queries: Q. A two-stage transformer has its own number, which must be the same where
                content is learned or `one_to_many` is given.
            with_box_refine: each decoder layer refines the boxes of the one before (Sec. 4.2).
            look_forward_twice: the loss of a layer's boxes also reaches the box head of the layer
                before (DINO, Sec. 3.5). Needs `with_box_refine`.
            shared_heads: whether all decoder layers have the same class head and box head; None
                for all that do not refine. The encoder's are its own in any case.
            one_to_many: further queries that learn in training only.
            denoising: noised targets as queries in training.
            position_embedding: of the cells; defaults to the official one.
            inverse_sigmoid_eps: belongs to the trained model; 1e-5 in Deformable DETR.

        Raises:
            ValueError: for a two-stage transformer, or looking forward twice, without box
                refinement, and for numbers of queries that differ.
        """
        super().__init__()
        if look_forward_twice and not with_box_refine:
            raise ValueError(
                "look_forward_twice (MODEL.DETR.LOOK_FORWARD_TWICE) is about refined boxes: set "
                "with_box_refine (MODEL.DETR.WITH_BOX_REFINE) to True"
            )
        if transformer.two_stage and not with_box_refine:
            raise ValueError(
                "two-stage Deformable DETR needs iterative box refinement: "
                "set with_box_refine (MODEL.DETR.WITH_BOX_REFINE) to True"
            )
        d_model = transformer.d_model
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.with_box_refine = with_box_refine
        self.look_forward_twice = look_forward_twice
        self.shared_heads = not with_box_refine if shared_heads is None else shared_heads
        self.one_to_many = one_to_many
        self.denoising = denoising
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.position_embedding = position_embedding or PositionEmbeddingSine(d_model // 2)
        self.input_proj = input_proj
        self.transformer = transformer
        self.query_embed = transformer.make_query_embed(
            num_queries + (one_to_many.num_queries if one_to_many else 0),
            d_model - self._indicator(),
        )
        if transformer.two_stage and (one_to_many or self.query_embed is not None):
            if transformer.num_queries != num_queries:
                raise ValueError(
                    f"num_queries is {num_queries}, that of the transformer "
                    f"{transformer.num_queries}: give both the same"
                )
        self.make_heads(num_classes)

    def _indicator(self) -> int:
        """Channels of the content that tell denoising queries from others."""
        return int(self.denoising is not None and self.denoising.indicator)

    def make_heads(self, num_classes: int) -> None:
        """
        One class and one box head per decoder layer, and one each for a proposing encoder, the
        last.

        Where layers share one head, the module occurs several times in the list, as in official
        checkpoints.
        """
        d_model = self.transformer.d_model
        class_embed = Linear(d_model, num_classes)
        nn.init.constant_(class_embed.bias, -math.log(99.0))  # a prior probability of 0.01
        bbox_embed = MLP(d_model, d_model, 4, num_layers=3)
        nn.init.zeros_(bbox_embed.layers[-1].weight)
        nn.init.zeros_(bbox_embed.layers[-1].bias)

        num_layers = self.transformer.num_decoder_layers
        replicate = (lambda module: module) if self.shared_heads else copy.deepcopy
        self.class_embed = nn.ModuleList(replicate(class_embed) for _ in range(num_layers))
        self.bbox_embed = nn.ModuleList(replicate(bbox_embed) for _ in range(num_layers))
        if self.transformer.two_stage:
            self.class_embed.append(copy.deepcopy(class_embed))
            self.bbox_embed.append(copy.deepcopy(bbox_embed))
        else:
            # Where a point becomes a box its sides start at sigmoid(-2) = 0.12 of the image
            # (the paper says 0.1). Later layers, and proposals, already have a size.
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)

    def class_probability(self, logits: Tensor) -> Tensor:
        """Of each class on its own, (..., K) -> (..., K), at least float32."""
        return at_least_float32(logits).sigmoid()

    def drop_training_parts(self) -> None:
        """
        Takes out what no detection depends on: denoising, queries of one-to-many matching,
        proposals that become no queries, and the class heads of all decoder layers but the last,
        whose predictions are no longer any.
        """
        if self.query_embed is not None:
            content = self.query_embed.weight.detach()[: self.num_queries]
            if self._indicator():
                content = F.pad(content, (0, 1))
            self.query_embed = nn.Embedding.from_pretrained(content.clone())
        self.denoising = self.one_to_many = None
        self.transformer.keep_queries(self.num_queries)
        self.transformer.all_tokens_propose = False
        for layer in range(self.transformer.num_decoder_layers - 1):
            self.class_embed[layer] = nn.Identity()

    def forward(
        self, features: list[Tensor], padding_mask: Tensor | None, targets: Targets | None = None
    ) -> dict:
        """
        Args:
            features: one (N, C_l, H_l, W_l) per backbone map, from high to low resolution.
            padding_mask: (N, H, W) bool of the input images, True = padding; None for none.
            targets: as the criterion gets them, for denoising queries; in training only.

        Returns:
            dict: The keys are:

            * "pred_logits": (N, Q, K), sigmoid logits of the last layer.
            * "pred_boxes": (N, Q, 4), (cx, cy, w, h) in [0, 1] of the valid image.
            * "aux_outputs": one dict with these two keys for each earlier layer.
            * "enc_outputs": (two-stage) the same two keys with all S tokens in place of Q, of
              which the logits tell objects from background.
            * "interm_outputs": (two-stage, where the encoder tells classes, or nothing trains any
              more) the same two keys of the tokens that became queries.
            * "train_groups": (where there are any) a :class:`QueryGroup` and the first three keys
              for each further group of queries.
        """
        maps = self.input_proj(features)
        if padding_mask is None:
            padding_masks = None
            pos_embeds = [
                self.position_embedding(_no_padding(m)).expand(m.shape[0], -1, -1, -1) for m in maps
            ]
        else:
            padding_masks = [resize_padding_mask(padding_mask, m.shape[2:]) for m in maps]
            pos_embeds = [self.position_embedding(mask) for mask in padding_masks]
        memory = self.transformer.encode(maps, padding_masks, pos_embeds)
        queries, groups = self.initial_queries(memory, targets)
        hs, boxes, _ = self.transformer.decoder(queries, memory, self.update_reference)
        layers = [
            {"pred_logits": classify(query), "pred_boxes": layer_boxes}
            for classify, query, layer_boxes in zip(self.class_embed, hs, boxes)
        ]
        outputs, train_groups = {}, []
        for group, of_group in zip(groups, _split(layers, groups)):
            of_group = {**of_group[-1], "aux_outputs": of_group[:-1]}
            if group.suffix:
                train_groups.append((group, of_group))
            else:
                outputs = of_group
        if train_groups:
            outputs["train_groups"] = train_groups
        if queries.proposals is not None:
            of_all = self.transformer.all_tokens_propose
            outputs["enc_outputs" if of_all else "interm_outputs"] = queries.proposals
        return outputs

    def initial_queries(
        self, memory: Memory, targets: Targets | None
    ) -> tuple[QuerySet, list[QueryGroup]]:
        """
        What the decoder starts from: in training the denoising queries, those that detect, and
        those of one-to-many matching, in this order; else those that detect alone.

        Args:
            memory: the encoder's output.
            targets: see :meth:`forward`.
        """
        num_extra = self.one_to_many.num_queries if self.one_to_many and self.training else 0
        query_embed = None
        if self.query_embed is not None:
            query_embed = self.query_embed.weight[: self.num_queries + num_extra]
            if self._indicator():
                query_embed = F.pad(query_embed, (0, 1))
        queries = self.transformer.initial_queries(
            memory,
            query_embed,
            TokenHeads(
                self.class_embed[-1],
                # Of the boxes of all tokens few are matched.
                functools.partial(learn_from_few_rows, self.bbox_embed[-1]),
            ),
            num_extra,
        )
        groups = [QueryGroup(queries.content.shape[1])]
        if num_extra:
            # The best proposals detect. Where there are too few for all, the others are fewer.
            size = min(self.num_queries, groups[0].size)
            groups = [QueryGroup(size), self.one_to_many.group(groups[0].size - size)]
        if self.denoising is not None and self.training and targets is not None:
            content, reference_points, group = self.denoising(targets)
            query_pos = self.transformer.query_position(reference_points)
            if query_pos is not None:
                query_pos = torch.cat((query_pos, queries.query_pos), dim=1)
            queries = dataclasses.replace(
                queries,
                content=torch.cat((content, queries.content), dim=1),
                query_pos=query_pos,
                reference_points=torch.cat((reference_points, queries.reference_points), dim=1),
            )
            groups.insert(0, group)
        if len(groups) > 1:
            queries.attn_mask = attention_mask(groups, queries.content.device)
        return queries, groups

    def update_reference(
        self, layer: int, query: Tensor, output: Tensor, reference_points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        The boxes of `layer`, and what the next layer looks around: these boxes (refinement,
        Sec. 4.2) or the same points again.

        Args:
            query: (N, Q, C), the state after the layer, which moves the references.
            output: (N, Q, C), the same as the heads read it: normalised, where the decoder has a
                norm.
            reference_points: (N, Q, 2 or 4), what the boxes are relative to.

        Returns:
            boxes: (N, Q, 4), (cx, cy, w, h) in the valid image, at least float32.
            reference_points: (N, Q, 2 or 4).
        """
        delta = at_least_float32(self.bbox_embed[layer](output))
        boxes = shift_box(delta, reference_points, self.inverse_sigmoid_eps)
        if not self.with_box_refine:
            return boxes, reference_points
        if output is not query:
            delta = at_least_float32(self.bbox_embed[layer](query))
        moved = shift_box(delta, reference_points.detach(), self.inverse_sigmoid_eps)
        # Detached: each layer learns its own correction only; or it, and the one before.
        return boxes, moved if self.look_forward_twice else moved.detach()


def _split(layers: list[dict[str, Tensor]], groups: list[QueryGroup]) -> list[list[dict]]:
    """Predictions of all queries by layer -> of each group, by layer."""
    if len(groups) == 1:
        return [layers]
    sizes = [group.size for group in groups]
    parts = [{key: x.split(sizes, dim=1) for key, x in layer.items()} for layer in layers]
    return [
        [{key: x[i] for key, x in layer.items()} for layer in parts] for i in range(len(groups))
    ]
