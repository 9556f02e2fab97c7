"""The one reading of weights: whatever family they are of, in the names of the model."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from .caffe2 import convert_caffe2_state_dict, is_caffe2
from .class_rows import num_class_rows, take_class_rows
from .coco_classes import COCO_CATEGORY_IDS
from .dat import convert_dat, is_dat
from .efficientnet_lite import convert_efficientnet_lite, is_efficientnet_lite
from .entries import REFINES
from .fit import check_refinement, check_shared_heads, check_state_dict
from .project import Project
from .projects import OTHERS, without_shared_beginning
from .torchvision import convert_torchvision_state_dict
from .train_only import with_train_only

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

_IN_RESNET = re.compile(r"^backbone\.(?:.*\.)?((?:stem|res\d)\..*)$")
_CLASSIFIER = re.compile(r"^(stem\.)?(fc|linear)\.")
#: What networks of timm have behind their last map.
_BEHIND = re.compile(r"^(norm|head|fc_norm)\.")
#: Parts that only other detectors of detectron2 have.
_OTHER_HEADS = ("proposal_generator.", "roi_heads.", "head.cls_subnet.", "head.bbox_subnet.")
#: Other detectors, by a piece of the names in their checkpoints.
_UNREADABLE = {
    ".attentions.0.": "detrex",
    "bbox_head.": "mmdetection",
    "backbone.conv_encoder.": "Hugging Face transformers",
    "bbox_attention.": "DETR with masks",
}


class Weights(NamedTuple):
    """
    tensors: under the names of the model.
    family: what they are, in words; "" for weights of this package.
    part: how the names of the model begin that they should fill; "" for all.
    """

    tensors: StateDict
    family: str
    part: str


def read_state_dict(state_dict: StateDict, model: nn.Module, source: str) -> Weights:
    """
    Weights under the names of `model`, whichever of these they are:

    * a detector of this package, of the official code, detrex or Hugging Face transformers;
    * a ResNet of torchvision, detectron2 or Caffe2, an EfficientNet-Lite, a DAT of its authors;
    * the model's own backbone, or that of another detector of detectron2 or torchvision.

    All names may begin with the same words, such as "module.".

    Args:
        model: a :class:`SetDetector`. Its backbone may have the ResNet inside, as a feature
            pyramid has.
        source: what to call the weights in an error.

    Raises:
        InputError: when nothing of it belongs to the model, or its heads are of the other kind.
    """
    expected = model.state_dict()
    found, family = state_dict, _family(state_dict, expected)
    while family is None and (shorter := without_shared_beginning(found)):
        found, family = shorter, _family(shorter, expected)
    if family is None:
        if state_dict:
            raise InputError(f"{source}: {why_unreadable(state_dict)}")
        return Weights(state_dict, "", "")
    check_refinement(family.refines(found), model, source)
    tensors = _settle(family.convert(found, expected), expected)
    check_shared_heads(tensors, model, source)
    if family.name:
        logger.info(f"{source}: {family.name}; {len(tensors)} tensors have a place in the model")
        if family.caveat:
            logger.warning(f"{source}: {family.name}; {family.caveat}")
        tensors = _with_counters(tensors, expected)
    parts = (_best_root(found, expected), _resnet_root(expected), "backbone.")
    part = next((p for p in parts if p and tensors and all(k.startswith(p) for k in tensors)), "")
    if part:
        tensors = _with_offsets(tensors, expected, source)
    return Weights(tensors, family.name, part)


def read_alike(model: nn.Module) -> None:
    """
    From now on `load_state_dict` of a :class:`SetDetector` reads what :func:`read_state_dict` does,
    whoever calls it.
    """
    model.register_load_state_dict_pre_hook(_read_before_loading)
    model.register_state_dict_post_hook(_note_refinement)


def _note_refinement(model: nn.Module, state_dict: StateDict, _: str, metadata: dict) -> None:
    """Beside the versions of the modules: tensors alone do not tell shared heads from refining."""
    metadata[REFINES] = getattr(model.head, REFINES, None)


def _read_before_loading(
    model: nn.Module, state_dict: StateDict, prefix: str, metadata: dict, *_: Any
) -> None:
    """
    Weights that had to be converted must fit completely, since no caller could tell from a list
    in other names what of them is missing.
    """
    check_refinement(metadata.get(REFINES), model, "what is loaded")
    own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    tensors, family, part = read_state_dict(own, model, "what is loaded")
    tensors, said = with_train_only(tensors, model)
    if said:
        logger.info(f"what is loaded {said}")
    if family:
        check_state_dict(tensors, model.state_dict(), f"what is loaded, {family},", part=part)
    if tensors is not own:
        for key in own:
            del state_dict[f"{prefix}{key}"]
        state_dict.update({f"{prefix}{key}": value for key, value in tensors.items()})


class _Family(NamedTuple):
    name: str
    recognise: Callable[[StateDict, StateDict], bool]
    convert: Callable[[StateDict, StateDict], StateDict]
    refines: Callable[[StateDict], bool | None] = lambda state_dict: None
    caveat: str = ""


def _family(state_dict: StateDict, expected: StateDict) -> _Family | None:
    return next((f for f in _FAMILIES if f.recognise(state_dict, expected)), None)


def _project(state_dict: StateDict) -> str:
    """The other project that the weights are of; "" if it is not known."""
    of = (name for piece, name in _UNREADABLE.items() if any(piece in key for key in state_dict))
    return next(of, "")


def why_unreadable(state_dict: StateDict) -> str:
    """Of weights of no known family: what they are, as far as it is known, and what to give."""
    if project := _project(state_dict):
        return (
            f"a checkpoint of {project} that is none of Deformable DETR; give one of this package, "
            "or Deformable DETR of the official code, detrex or Hugging Face transformers, or "
            "weights of the backbone alone"
        )
    return (
        f"does not fit this config: none of its {len(state_dict)} tensors, the first "
        f"{next(iter(state_dict))}, belongs to the model. Known are checkpoints of this package "
        "and of Deformable DETR in the official code, detrex and Hugging Face transformers, "
        "ResNets of torchvision, detectron2 and Caffe2, and weights of the model's own backbone"
    )


def _best_root(keys: Iterable[str], expected: StateDict) -> str:
    """Where in the backbone most of `keys` are found; "" if fewer than half are anywhere."""
    keys, roots = set(keys), Counter()
    for name in expected:
        words = name.split(".")
        for i in range(1, len(words)):
            if ".".join(words[i:]) in keys:
                roots[".".join(words[:i]) + "."] += 1
    root, count = roots.most_common(1)[0] if roots else ("", 0)
    return root if 2 * count > len(keys) and root.startswith("backbone.") else ""


def _convert_bare(state_dict: StateDict, expected: StateDict) -> StateDict:
    root = _best_root(state_dict, expected)
    return {
        f"{root}{k}": v
        for k, v in state_dict.items()
        if not (_CLASSIFIER.match(k) or (_BEHIND.match(k) and f"{root}{k}" not in expected))
    }


def _family_of(project: Project) -> _Family:
    """Of the 91 rows for COCO's ids, the 80 of its classes are taken where the model has 80."""

    def convert(state_dict: StateDict, expected: StateDict) -> StateDict:
        converted = project.to_here(state_dict)
        if (num_class_rows(converted), num_class_rows(expected)) == (91, 80):
            return take_class_rows(converted, COCO_CATEGORY_IDS)
        return converted

    return _Family(
        project.name,
        lambda found, _: project.recognises(found),
        convert,
        project.refines,
        project.caveat,
    )


def _convert_torchvision_detector(state_dict: StateDict, expected: StateDict) -> StateDict:
    root = "backbone.body."
    body = {k.removeprefix(root): v for k, v in state_dict.items() if k.startswith(root)}
    return convert_torchvision_state_dict(body)


def _convert_other_detector(state_dict: StateDict, expected: StateDict) -> StateDict:
    return {
        k: v
        for k, v in state_dict.items()
        if k.startswith("backbone.") and (k in expected or _IN_RESNET.match(k))
    }


_FAMILIES = (
    *map(_family_of, OTHERS),
    _Family(
        "a detector of torchvision, of which the backbone is taken",
        lambda found, _: "backbone.body.layer1.0.conv1.weight" in found,
        _convert_torchvision_detector,
    ),
    _Family(
        "another detector of detectron2, of which the backbone is taken",
        lambda found, _: any(key.startswith(_OTHER_HEADS) for key in found),
        _convert_other_detector,
        caveat="compare INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and "
        "MODEL.RESNETS.STRIDE_IN_1X1 with its config, since nothing in the file tells them",
    ),
    _Family(
        "",
        lambda found, expected: not found.keys().isdisjoint(expected) and not _project(found),
        lambda found, _: found,
    ),
    _Family(
        "a Caffe2 ResNet",
        lambda found, _: is_caffe2(found),
        lambda found, _: convert_caffe2_state_dict(found),
        caveat="it expects INPUT.FORMAT BGR, MODEL.PIXEL_MEAN [103.53, 116.28, 123.675], "
        "MODEL.PIXEL_STD [1.0, 1.0, 1.0] and MODEL.RESNETS.STRIDE_IN_1X1 True",
    ),
    _Family(
        "an EfficientNet-Lite",
        lambda found, _: is_efficientnet_lite(found),
        convert_efficientnet_lite,
    ),
    _Family(
        "a DAT trained on ImageNet",
        lambda found, expected: is_dat(found) and "backbone.patch_proj.0.weight" in expected,
        lambda found, expected: convert_dat(found, expected, "backbone."),
    ),
    _Family(
        "weights of a backbone",
        lambda found, expected: bool(_best_root(found, expected)),
        _convert_bare,
    ),
    _Family(
        "a torchvision ResNet",
        lambda found, _: "layer1.0.conv1.weight" in found,
        lambda found, _: convert_torchvision_state_dict(found),
    ),
)


def _resnet_root(expected: StateDict) -> str:
    """How the names of the ResNet in the backbone begin; "backbone." without one."""
    stem = "stem.conv1.weight"
    roots = [k.removesuffix(stem) for k in expected if k.startswith("backbone.") and stem in k]
    return roots[0] if len(roots) == 1 else "backbone."


def _settle(tensors: StateDict, expected: StateDict) -> StateDict:
    """Move a ResNet to where the model has it, without the stages that the model leaves out."""
    strange = [key for key in tensors if key not in expected and _IN_RESNET.match(key)]
    if not strange:
        return tensors
    root = _resnet_root(expected)
    names = {key: key for key in tensors}
    for key in strange:
        inner = _IN_RESNET.match(key)[1]
        stage = f"{root}{inner.partition('.')[0]}."
        exists = any(name.startswith(stage) for name in expected)
        names[key] = f"{root}{inner}" if exists and not _CLASSIFIER.match(inner) else ""
    return {name: tensors[key] for key, name in names.items() if name}


def _with_counters(tensors: StateDict, expected: StateDict) -> StateDict:
    """Counters of the BatchNorms, which not every file has and not every model wants."""
    end = "num_batches_tracked"
    kept = {k: v for k, v in tensors.items() if k in expected or not k.endswith(end)}
    for name in expected:
        if name.endswith(end) and name.removesuffix(end) + "running_mean" in kept:
            kept.setdefault(name, torch.tensor(0))
    return kept


def _with_offsets(tensors: StateDict, expected: StateDict, source: str) -> StateDict:
    """
    Weights of a ResNet that knows no deformable convolution are a start for one: its offsets are
    zero then. Not of a whole detector, which could be evaluated so and would be another one.
    """
    missing = [name for name in expected if ".conv2_offset." in name and name not in tensors]
    if not missing or any(".conv2_offset." in name for name in tensors):
        return tensors
    logger.info(
        f"{source}: has no deformable convolutions; {len(missing)} tensors of conv2_offset, the "
        f"first {missing[0]}, begin at zero, and so a modulation (DEFORM_MODULATED) at a half"
    )
    return tensors | {name: torch.zeros_like(expected[name]) for name in missing}
