"""DeformableDETRHead: backbone maps in, class logits and boxes of every decoder layer out."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .box_ops import shift_box
from .position_encoding import PositionEmbeddingSine
from .precision import at_least_float32
from .transformer import DeformableTransformer


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class GroupNorm(nn.GroupNorm):
    """
    PyTorch's, also of a single value per group, which becomes 0 before weight and bias: an image of
    one cell alone, with as many channels as groups. `F.group_norm` refuses that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class FeatureProjector(nn.ModuleList):
    """
    Backbone maps -> one map of C channels per level (Sec. A.2).

    Each backbone map gets a 1x1 convolution. Extra levels halve the resolution with a 3x3
    convolution: the first reads the last backbone map, each further one the level before it.
    All are followed by GroupNorm.
    """

    def __init__(self, in_channels: list[int], d_model: int = 256, num_levels: int = 4):
        """
        Args:
            in_channels: channels of the backbone maps, from high to low resolution.
            d_model: C.
            num_levels: L, at least as many as backbone maps.
        """
        if num_levels < len(in_channels):
            raise ValueError(
                f"num_levels ({num_levels}) must be at least the number of backbone maps "
                f"({len(in_channels)})"
            )
        num_extra = num_levels - len(in_channels)
        extra_channels = ([in_channels[-1]] + [d_model] * num_extra)[:num_extra]
        convs = [nn.Conv2d(c, d_model, kernel_size=1) for c in in_channels]
        convs += [nn.Conv2d(c, d_model, 3, stride=2, padding=1) for c in extra_channels]
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        super().__init__(nn.Sequential(conv, GroupNorm(32, d_model)) for conv in convs)
        self.num_backbone_maps = len(in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One (N, C_l, H_l, W_l) per backbone map -> one (N, C, H_l, W_l) per level."""
        maps = [project(x) for project, x in zip(self, features)]
        source = features[-1]
        for project in list(self)[self.num_backbone_maps :]:
            source = project(source)
            maps.append(source)
        return maps


def resize_padding_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """
    The mask of one level: the full mask sampled at the nearest pixel, not `ceil(h / stride)`.

    Args:
        padding_mask: (N, H, W) bool, True = padding, of the input image.
        size: (H_l, W_l).
    """
    return F.interpolate(padding_mask[None].float(), size=size, mode="nearest")[0].bool()


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
        position_embedding: PositionEmbeddingSine | None = None,
        inverse_sigmoid_eps: float = 1e-5,
    ):
        """
        Args:
            input_proj: maps of the backbone -> maps of the transformer.
            transformer: its `two_stage` says whether the encoder has heads of its own.
            num_classes: K; there is no background class.
            num_queries: Q. A two-stage transformer has its own number.
            with_box_refine: each decoder layer refines the boxes of the one before (Sec. 4.2).
            position_embedding: of the cells; defaults to the official one.
            inverse_sigmoid_eps: belongs to the trained model; 1e-5 in Deformable DETR.

        Raises:
            ValueError: for a two-stage transformer without box refinement.
        """
        super().__init__()
        if transformer.two_stage and not with_box_refine:
            raise ValueError(
                "two-stage Deformable DETR needs iterative box refinement: "
                "set with_box_refine (MODEL.DETR.WITH_BOX_REFINE) to True"
            )
        d_model = transformer.d_model
        self.with_box_refine = with_box_refine
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.position_embedding = position_embedding or PositionEmbeddingSine(d_model // 2)
        self.input_proj = input_proj
        self.transformer = transformer
        if transformer.two_stage:
            self.query_embed = None
        else:
            self.query_embed = nn.Embedding(num_queries, d_model * 2)  # position, content
        self.make_heads(num_classes)

    def make_heads(self, num_classes: int) -> None:
        """
        One class and one box head per decoder layer, and one each for a proposing encoder.

        Without refinement all layers share one head: the module occurs several times in the list,
        as in official checkpoints.
        """
        d_model = self.transformer.d_model
        class_embed = nn.Linear(d_model, num_classes)
        nn.init.constant_(class_embed.bias, -math.log(99.0))  # a prior probability of 0.01
        bbox_embed = MLP(d_model, d_model, 4, num_layers=3)
        nn.init.zeros_(bbox_embed.layers[-1].weight)
        nn.init.zeros_(bbox_embed.layers[-1].bias)

        num_heads = self.transformer.num_decoder_layers + self.transformer.two_stage
        replicate = copy.deepcopy if self.with_box_refine else lambda module: module
        self.class_embed = nn.ModuleList(replicate(class_embed) for _ in range(num_heads))
        self.bbox_embed = nn.ModuleList(replicate(bbox_embed) for _ in range(num_heads))
        if not self.transformer.two_stage:
            # Where a point becomes a box its sides start at sigmoid(-2) = 0.12 of the image
            # (the paper says 0.1). Later layers, and proposals, already have a size.
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)

    def forward(self, features: list[Tensor], padding_mask: Tensor) -> dict:
        """
        Args:
            features: one (N, C_l, H_l, W_l) per backbone map, from high to low resolution.
            padding_mask: (N, H, W) bool of the input images, True = padding.

        Returns:
            dict: The keys are:

            * "pred_logits": (N, Q, K), sigmoid logits of the last layer.
            * "pred_boxes": (N, Q, 4), (cx, cy, w, h) in [0, 1] of the valid image.
            * "aux_outputs": one dict with these two keys for each earlier layer.
            * "enc_outputs": (two-stage) the same two keys with all S tokens in place of Q.
        """
        maps = self.input_proj(features)
        padding_masks = [resize_padding_mask(padding_mask, m.shape[2:]) for m in maps]
        pos_embeds = [self.position_embedding(mask) for mask in padding_masks]
        memory = self.transformer.encode(maps, padding_masks, pos_embeds)
        queries = self.transformer.initial_queries(
            memory,
            None if self.query_embed is None else self.query_embed.weight,
            lambda tokens: (self.class_embed[-1](tokens), self.bbox_embed[-1](tokens)),
        )
        hs, boxes, _ = self.transformer.decoder(queries, memory, self.update_reference)
        layers = [
            {"pred_logits": classify(query), "pred_boxes": layer_boxes}
            for classify, query, layer_boxes in zip(self.class_embed, hs, boxes)
        ]
        outputs = {**layers[-1], "aux_outputs": layers[:-1]}
        if queries.proposals is not None:
            outputs["enc_outputs"] = queries.proposals
        return outputs

    def update_reference(
        self, layer: int, query: Tensor, reference_points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        The boxes of `layer`, and what the next layer looks around: these boxes (refinement,
        Sec. 4.2) or the same points again.

        Returns:
            boxes: (N, Q, 4), (cx, cy, w, h) in the valid image, at least float32.
            reference_points: (N, Q, 2 or 4).
        """
        delta = at_least_float32(self.bbox_embed[layer](query))
        boxes = shift_box(delta, reference_points, self.inverse_sigmoid_eps)
        # Detached: each layer learns its own correction only.
        return boxes, boxes.detach() if self.with_box_refine else reference_points
