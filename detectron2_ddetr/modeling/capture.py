"""
What the attention layers look at, recorded in a forward pass.

Recording is done by hooks that are on the modules meanwhile and at no other time: the modules know
nothing of it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .dense import DenseDecoderLayer, DenseEncoderLayer
from .head import DeformableDETRHead
from .memory import Memory
from .ms_deform_attn import MSDeformAttn
from .ops.checks import coordinate_dtype
from .ops.ms_deform_attn_pytorch import locations_from_offsets
from .precision import at_least_float32

#: What an attention layer belongs to.
KINDS = ("encoder", "decoder")


@dataclass
class DeformableAttention:
    """
    Where the queries of one layer read, and with which weights.

    Other kinds of attention have other records, under the same keys of :class:`Capture`.

    Attributes:
        level_reference_points: (N, Q, L, 2), (x, y), or (N, Q, L, 4), (cx, cy, w, h), in [0, 1] of
            the padded level. The Q of an encoder are the S cells of all levels.
        sampling_locations: (N, Q, M, L, P, 2), (x, y), in [0, 1] of the padded level; outside of it
            zero is read.
        attention_weights: (N, Q, M, L, P), summing to one over (L, P).
    """

    level_reference_points: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor


@dataclass
class DenseAttention:
    """
    What the heads of one layer of DETR compare. Maps are made of it for those who look at them: of
    DC5 images, those of all queries of an encoder are a gigabyte.

    Attributes:
        query: (N, M, Q, D). The Q of an encoder are the S cells.
        key: (N, M, S, D).
        padding_mask: (N, S) bool, True = padding, which is not read; None for none.
    """

    query: Tensor
    key: Tensor
    padding_mask: Tensor | None

    def weights(self, queries: Sequence[int] | None = None) -> Tensor:
        """
        Args:
            queries: which R of Q; None for all.

        Returns:
            (N, M, R, S), how much each head reads of each cell, summing to one over S; the mean
            over M is what DETR's own pictures show.
        """
        query = self.query if queries is None else self.query[:, :, list(queries)]
        logits = query @ self.key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if self.padding_mask is not None:
            logits = logits.masked_fill(self.padding_mask[:, None, None], -math.inf)
        return logits.softmax(-1)


@dataclass
class Capture:
    """
    The last forward pass; empty before the first. No tensor of it has a gradient.

    Attributes:
        attention: by kind, "encoder" or "decoder", and layer, from 0; of the decoder that which
            reads the memory.
        memory: what the encoder gave, with the sizes of the levels and of their valid parts.
        selected: (N, Q), the tokens of the memory that became queries, the best first; None where
            the encoder proposes nothing.
        class_probability: that of the head: logits (..., K) or, in DETR, (..., K + 1) -> (..., K).
        outputs: of the head, see :meth:`DeformableDETRHead.forward`; in a two-stage model
            "enc_outputs" or "interm_outputs" are the proposals.
        image_sizes: (h, w) of each image before padding, in pixels of the network's input; empty
            for a head alone that was given no mask.
    """

    attention: dict[tuple[str, int], DeformableAttention | DenseAttention] = field(
        default_factory=dict
    )
    memory: Memory | None = None
    selected: Tensor | None = None
    class_probability: Callable[[Tensor], Tensor] | None = None
    outputs: dict = field(default_factory=dict)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)

    def forget(self) -> None:
        """As before the first forward pass."""
        self.attention, self.memory, self.selected = {}, None, None
        self.outputs, self.image_sizes = {}, []

    @property
    def is_dense(self) -> bool:
        """Whether every cell is attended to, as in DETR, and queries have no reference."""
        return any(isinstance(record, DenseAttention) for record in self.attention.values())

    def num_layers(self, kind: str) -> int:
        """Of "encoder" or "decoder"."""
        return sum(key[0] == kind for key in self.attention)

    def reference_points(self, layer: int) -> Tensor:
        """(N, Q, 2 or 4), in [0, 1] of the valid image: what a decoder layer looked around."""
        references = self.attention["decoder", layer].level_reference_points
        ratios = self.memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
        return references[:, :, 0] / ratios[:, None, 0]

    def layer_outputs(self, layer: int) -> dict[str, Tensor]:
        """ "pred_logits" and "pred_boxes" of a decoder layer."""
        layers = [*self.outputs["aux_outputs"], self.outputs]
        return {key: layers[layer][key] for key in ("pred_logits", "pred_boxes")}

    def in_image(self, points: Tensor) -> Tensor:
        """
        From the frame of each padded level to that of the valid image, which boxes are in.

        Args:
            points: (N, ..., L, P, 2), (x, y), in [0, 1] of the padded level.

        Returns:
            The same shape; outside [0, 1] in the padding, and outside the level.
        """
        ratios = self.memory.valid_ratios  # (N, L, 2)
        return points / ratios.view(len(ratios), *[1] * (points.dim() - 4), -1, 1, 2)


@contextlib.contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """
    Records what the attention layers of `model` look at, until the context ends::

        with capture(model) as captured, torch.no_grad():
            model(batched_inputs)
        locations = captured.attention["encoder", 0].sampling_locations

    Args:
        model: has one :class:`DeformableDETRHead`, or is one. What it computes is not changed.

    Raises:
        ValueError: if it has none, or several.
    """
    heads = [module for module in model.modules() if isinstance(module, DeformableDETRHead)]
    if len(heads) != 1:
        raise ValueError(
            f"capture needs a model with one DeformableDETRHead, {type(model).__name__} has "
            f"{len(heads)}"
        )
    captured = Capture()
    backbones = (getattr(x, "backbone", None) for x in model.modules())
    backbone = next((x for x in backbones if isinstance(x, nn.Module)), None)
    with contextlib.ExitStack() as hooks:
        for handle in _watch_head(heads[0], captured, backbone):
            hooks.enter_context(handle)
        yield captured


def _watch_head(
    head: DeformableDETRHead, captured: Capture, backbone: nn.Module | None
) -> Iterator[RemovableHandle]:
    whole = []  # the sizes of images without padding

    def remember_images(module, args):
        images = args[0]
        whole[:] = [tuple(images.shape[-2:])] * len(images)

    def begin(module, args, kwargs):
        captured.forget()
        captured.class_probability = module.class_probability
        padding_mask = kwargs["padding_mask"] if "padding_mask" in kwargs else args[1]
        if padding_mask is None:
            captured.image_sizes = list(whole)
            return
        valid = ~padding_mask  # (N, H, W); padding is right and below
        sizes = torch.stack((valid[:, :, 0].sum(1), valid[:, 0, :].sum(1)), dim=1)
        captured.image_sizes = [tuple(size) for size in sizes.tolist()]

    def remember_memory(module, args, memory):
        captured.memory = memory.with_tokens(memory.tokens.detach())

    def remember_selected(module, args):
        captured.selected = args[0].selected

    def remember_outputs(module, args, outputs):
        captured.outputs = _detached(outputs)

    if backbone is not None:
        yield backbone.register_forward_pre_hook(remember_images)
    yield head.register_forward_pre_hook(begin, with_kwargs=True)
    yield head.transformer.encoder.register_forward_hook(remember_memory)
    yield head.transformer.decoder.register_forward_pre_hook(remember_selected)
    yield head.register_forward_hook(remember_outputs)
    for kind in KINDS:
        for number, layer in enumerate(getattr(head.transformer, kind).layers):
            key = (kind, number)
            if isinstance(layer, DenseEncoderLayer):
                yield _watch_dense_attention(layer.self_attn, key, captured)
            elif isinstance(layer, DenseDecoderLayer):
                yield _watch_dense_attention(layer.multihead_attn, key, captured)
            for module in layer.modules():
                if isinstance(module, MSDeformAttn):  # at most one in each
                    yield from _watch_attention(module, key, captured)


def _watch_dense_attention(
    attention: nn.MultiheadAttention, key: tuple[str, int], captured: Capture
) -> RemovableHandle:
    def record(module, args, kwargs, output):
        given = zip(args[:2], module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3))
        query, keys = (
            at_least_float32(F.linear(x, weight, bias).detach())
            .unflatten(-1, (module.num_heads, -1))
            .transpose(1, 2)
            for x, weight, bias in given
        )
        captured.attention[key] = DenseAttention(query, keys, kwargs["key_padding_mask"])

    return attention.register_forward_hook(record, with_kwargs=True)


def _watch_attention(
    attention: MSDeformAttn, key: tuple[str, int], captured: Capture
) -> Iterator[RemovableHandle]:
    given = {}  # what the projections of the query gave to the operator

    def remember(name):
        def hook(module, args, output):
            given[name] = output.detach()

        return hook

    def record(module, args, output):
        _, references, _, spatial_shapes = args[:4]
        offsets, logits = given.pop("offsets"), given.pop("logits")
        # As the operator does: coordinates and weights are never of 16 bits.
        dtype = coordinate_dtype(offsets)
        references = references.detach().to(dtype)
        heads, levels, points = module.n_heads, module.n_levels, module.n_points
        per_head = (heads, levels * points)
        locations = locations_from_offsets(
            references, offsets.unflatten(-1, (*per_head, 2)), spatial_shapes, [points] * levels
        )
        weights = logits.unflatten(-1, per_head).to(dtype).softmax(-1)
        captured.attention[key] = DeformableAttention(
            references,
            locations.unflatten(3, (levels, points)),
            weights.unflatten(3, (levels, points)),
        )

    yield attention.sampling_offsets.register_forward_hook(remember("offsets"))
    yield attention.attention_weights.register_forward_hook(remember("logits"))
    yield attention.register_forward_hook(record)


def _detached(value):
    """The tensors in nested dicts, lists and tuples; all else as it is."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(x) for x in value)
    return value
