"""Checkpoints of one project that has Deformable DETR <-> weights under the names here."""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .renaming import Renaming

StateDict = dict[str, Tensor]

#: Numbers in state dicts that no layer computes with: how their names end, and what they are.
_LEFTOVERS = (
    (re.compile(r"(^|\.)total_(params|ops)$"), "leftover of a FLOP counter, dropped"),
    (re.compile(r"\.num_batches_tracked$"), "counter of a BatchNorm, dropped"),
)
_DECODER_LAYER = re.compile(r"^head\.transformer\.decoder\.layers\.(\d+)\.")
_HEADS = ("class_embed", "bbox_embed")
_LAYER = re.compile(r"transformer\.decoder\.layers\.(\d+)\.")
_HEAD = re.compile(r"^(head\.|)(class_embed|bbox_embed)\.(\d+)\.(.*)$")
#: What makes positions of boxes.
_OF_ANCHORS = "head.transformer.decoder.ref_point_head."


@dataclass(frozen=True)
class Project:
    """
    key: what the command line calls it.
    name: what its weights are called.
    names: of tensors there and here; what it lacks is no weight of Deformable DETR.
    mark: a name that all its checkpoints have, and no others.
    decoder: how the names of the decoder begin, under which refining models have their heads for a
        second time; "" where they have none.
    has_all_copies: whether all files of refining models have them: some formats leave out one of
        two names for a tensor.
    prepare: makes of the tensors of a file those of `names`.
    complete: the inverse of `prepare`.
    coco_rows: 91 where a model of COCO has a class row for each category id, 80 where it has one
        for each class.
    leftovers: what is not carried over.
    anchors: whether the positions of its queries follow boxes, as in DAB-DETR and DINO; None where
        there are models of both kinds.
    mixed_selection: whether it has two-stage models whose queries have learned content.
    caveat: what its models compute otherwise than here.
    model_type: of the folders of transformers that its checkpoints are; "" where they are files.
    """

    key: str
    name: str
    names: Renaming
    mark: str
    decoder: str
    has_all_copies: bool = True
    prepare: Callable[[StateDict], StateDict] = dict
    complete: Callable[[StateDict], StateDict] = dict
    coco_rows: int = 80
    leftovers: tuple[tuple[re.Pattern, str], ...] = _LEFTOVERS
    anchors: bool | None = False
    mixed_selection: bool = False
    caveat: str = ""
    model_type: str = ""

    def recognises(self, keys: Container[str]) -> bool:
        """Whether these are the names in one of its checkpoints."""
        return self.mark in keys

    def plan(self, state_dict: StateDict) -> list[tuple[str, str | None, str]]:
        """
        What becomes of each key.

        Args:
            state_dict: after `prepare`; values are not looked at.

        Returns:
            (key, name here or None, what it is) in the order of the keys.

        Raises:
            InputError: naming keys that are not of Deformable DETR.
        """
        plan, unknown = [], []
        for key in state_dict:
            dropped = next((what for end, what in self.leftovers if end.search(key)), None)
            if dropped is None and (owner := self._owner(key)):
                dropped = f"copy of {owner.split('.')[0]}, equal, dropped"
            name = None if dropped else self.names.to_here(key)
            if not name and not dropped:
                unknown.append(key)
            plan.append((key, name, dropped or (name or "").removeprefix("head.").split(".")[0]))
        if unknown or not any(name for _, name, _ in plan):
            raise InputError(
                f"not {self.name} of Deformable DETR; {len(unknown)} unknown keys: {unknown[:5]}"
            )
        return plan

    def to_here(self, state_dict: StateDict) -> StateDict:
        """
        Weights under the names here, with all class rows.

        Raises:
            InputError: naming keys that are not of Deformable DETR, or copies that differ.
        """
        prepared = self.prepare(state_dict)
        plan = self.plan(prepared)
        for key in prepared:
            self._check_copy(key, prepared)
        return _with_shared_heads({name: prepared[key] for key, name, _ in plan if name})

    def from_here(self, state_dict: StateDict, refines: bool) -> StateDict:
        """
        The tensors of a file of this project.

        Args:
            state_dict: weights under the names here, of a ResNet and the head.
            refines: whether each decoder layer has heads of its own.

        Raises:
            InputError: naming tensors that the project has no place for.
        """
        kept = [k for k in state_dict if not any(end.search(k) for end, _ in self.leftovers)]
        names = {key: self.names.to_there(key) for key in kept}
        anchors = any(key.startswith(_OF_ANCHORS) for key in kept)
        if self.anchors not in (None, anchors):
            what = "follow boxes" if anchors else "do not follow boxes"
            raise InputError(f"{self.name} cannot be of a model whose query positions {what}")
        learned = "head.query_embed.weight" in state_dict
        if is_two_stage(state_dict) and learned and not self.mixed_selection:
            raise InputError(f"{self.name} cannot be of a two-stage model with mixed selection")
        if strange := [key for key, name in names.items() if name is None]:
            raise InputError(
                f"{self.name} has no place for {len(strange)} of {len(state_dict)} tensors, the "
                f"first {strange[0]}: what can be written so are the models of its authors, with a "
                "ResNet"
            )
        tensors = {name: state_dict[key] for key, name in names.items()}
        twice = _HEADS if is_two_stage(state_dict) else _HEADS[1:] if refines else ()
        if self.decoder:
            tensors |= {f"{self.decoder}{k}": tensors[k] for k in tensors if k.startswith(twice)}
        tensors = self.complete(tensors)
        if not self.recognises(tensors):
            raise InputError(f"{self.name} has {self.mark}, which these weights have not")
        return tensors

    def refines(self, state_dict: StateDict) -> bool:
        """Whether each decoder layer of a file's model has heads of its own."""
        if any(map(self._owner, state_dict)):
            return True
        return not self.has_all_copies and heads_differ(self.to_here(state_dict))

    def _owner(self, key: str) -> str:
        """The tensor that `key` is a copy of; "" if it is none."""
        owner = key.removeprefix(self.decoder)
        return owner if owner != key and owner.startswith(_HEADS) else ""

    def _check_copy(self, key: str, state_dict: StateDict) -> None:
        """A copy must equal its owner, or it is unclear which one is meant."""
        owner = self._owner(key)
        if not owner:
            return
        if owner not in state_dict:
            raise InputError(f"{key} is a copy of {owner}, which is missing")
        if not torch.equal(state_dict[key], state_dict[owner]):
            raise InputError(f"{key} and {owner} are one tensor officially, but differ here")


def is_two_stage(state_dict: StateDict) -> bool:
    """Whether the encoder proposes."""
    return "head.transformer.enc_output.weight" in state_dict


def is_dense(state_dict: StateDict) -> bool:
    """Whether the transformer is DETR's; the last row of its class heads is of no object."""
    return "head.transformer.decoder.layers.0.multihead_attn.in_proj_weight" in state_dict


def num_decoder_layers(state_dict: StateDict) -> int:
    """Of weights under the names here."""
    return len({m[1] for m in map(_DECODER_LAYER.match, state_dict) if m})


def heads_differ(state_dict: StateDict) -> bool:
    """Whether the layers have different box heads: then they are not one that all share."""
    boxes = [key for key in state_dict if key.startswith("head.bbox_embed.")]
    firsts = {key: re.sub(r"\.\d+\.", ".0.", key, count=1) for key in boxes}
    return is_two_stage(state_dict) or any(
        firsts[key] in state_dict and not torch.equal(state_dict[key], state_dict[firsts[key]])
        for key in boxes
    )


def layers_differ(state_dict: StateDict) -> bool:
    """Whether decoder layers, whatever their heads are called, have different ones."""
    layers = {m[1] for m in map(_LAYER.search, state_dict) if m}
    for key, value in state_dict.items():
        head = _HEAD.match(key)
        if head and head[3] in layers and head[3] != "0":
            first = state_dict.get(f"{head[1]}{head[2]}.0.{head[4]}")
            if first is not None and not torch.equal(value, first):
                return True
    return False


def _with_shared_heads(state_dict: StateDict) -> StateDict:
    """A head that a file has once, because all layers share it, under the names of all."""
    completed = dict(state_dict)
    for kind in _HEADS:
        begins, first = f"head.{kind}.", f"head.{kind}.0."
        own = [key for key in state_dict if key.startswith(begins)]
        if all(key.startswith(first) for key in own):
            for i in range(1, num_decoder_layers(state_dict)):
                completed |= {k.replace(first, f"{begins}{i}."): state_dict[k] for k in own}
    return completed
