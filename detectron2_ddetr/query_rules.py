"""Which systems of the family and which of their switches can stand together."""

import functools

from .errors import InputError
from .toolbox import CfgNode

#: What the keys of MODEL.DETR must be for a meta-architecture, since it is made so.
_SYSTEMS = {
    "HDeformableDETR": {"TWO_STAGE": True},
    "DABDeformableDETR": {"TWO_STAGE": False, "WITH_BOX_REFINE": True},
    "DNDeformableDETR": {"TWO_STAGE": False, "WITH_BOX_REFINE": True},
    "DINO": {"TWO_STAGE": True, "MIXED_SELECTION": True},
    "DetrexDINO": {"TWO_STAGE": True, "MIXED_SELECTION": True},
    "DETR": {
        "TWO_STAGE": False,
        "WITH_BOX_REFINE": False,
        "NUM_FEATURE_LEVELS": 1,
        "DENOISING.ENABLED": False,
        "ONE_TO_MANY.NUM_QUERIES": 0,
    },
}
#: The transformer that a meta-architecture has in place of the default one.
_TRANSFORMERS = {
    "DABDeformableDETR": "build_anchor_transformer",
    "DNDeformableDETR": "build_anchor_transformer",
    "DINO": "build_dino_transformer",
    "DetrexDINO": "build_dino_transformer",
    "DETR": "build_dense_transformer",
}
#: The parts of DETR, which only its head fits, and what stands in their place elsewhere.
_OF_DETR = {
    "TRANSFORMER": ("build_dense_transformer", "build_deformable_transformer"),
    "CRITERION": ("build_softmax_criterion", "build_set_criterion"),
}


def check_queries(cfg: CfgNode) -> None:
    """
    Reject combinations of MODEL.META_ARCHITECTURE and of the keys that say where queries come
    from, how they are refined, and which further groups train.

    Raises:
        InputError: naming the keys, the rule and the remedy.
    """
    node, system = cfg.MODEL.DETR, cfg.MODEL.META_ARCHITECTURE
    for key, value in _SYSTEMS.get(system, {}).items():
        if functools.reduce(getattr, key.split("."), node) != value:
            _refuse(cfg, key, "MODEL.META_ARCHITECTURE", "it is made otherwise", f"set {value}")
    transformer = _TRANSFORMERS.get(system, node.TRANSFORMER)
    if node.TRANSFORMER == "build_deformable_transformer" != transformer:
        remedy = f"set {transformer!r}"
        _refuse(cfg, "TRANSFORMER", "MODEL.META_ARCHITECTURE", "it has its own", remedy)
    for key, (of_detr, otherwise) in _OF_DETR.items():
        wrong, right = (otherwise, of_detr) if system == "DETR" else (of_detr, otherwise)
        if getattr(node, key) == wrong and system in ("DeformableDETR", *_SYSTEMS):
            rule = "the last class of DETR is no object, in its head and its losses alone"
            _refuse(cfg, key, "MODEL.META_ARCHITECTURE", rule, f"set {right!r}")
    anchors = transformer == "build_anchor_transformer"
    refine, remedy = "MODEL.DETR.WITH_BOX_REFINE", "set WITH_BOX_REFINE to True"
    if node.TWO_STAGE and not node.WITH_BOX_REFINE:
        rule = "proposals are boxes, which only refinement can use"
        _refuse(cfg, "TWO_STAGE", refine, rule, remedy)
    if node.LOOK_FORWARD_TWICE and not node.WITH_BOX_REFINE:
        _refuse(cfg, "LOOK_FORWARD_TWICE", refine, "it is about refined boxes", remedy)
    if node.MIXED_SELECTION and not node.TWO_STAGE:
        remedy = "set TWO_STAGE to True, or it to False"
        _refuse(cfg, "MIXED_SELECTION", "MODEL.DETR.TWO_STAGE", "it is about proposals", remedy)
    denoising = node.DENOISING
    if not denoising.ENABLED:
        return
    if not (node.TWO_STAGE or anchors):
        _refuse(
            cfg,
            "DENOISING.ENABLED",
            "MODEL.DETR.TWO_STAGE",
            "noised boxes cannot be queries where queries start from points",
            "set TWO_STAGE and WITH_BOX_REFINE to True, or it to False",
        )
    if denoising.INDICATOR and not (anchors or node.MIXED_SELECTION):
        _refuse(
            cfg,
            "DENOISING.INDICATOR",
            "MODEL.DETR.MIXED_SELECTION",
            "the content of the other queries is not learned, so that no channel of it is free",
            "set MIXED_SELECTION to True, or it to False",
        )
    if denoising.NEGATIVES and not denoising.CORNER_NOISE:
        _refuse(
            cfg,
            "DENOISING.NEGATIVES",
            "MODEL.DETR.DENOISING.CORNER_NOISE",
            "they are told from positives by the noise on their corners",
            "set CORNER_NOISE to True, or it to False",
        )


def _refuse(cfg: CfgNode, key: str, other: str, rule: str, remedy: str) -> None:
    key = f"MODEL.DETR.{key}"
    value, against = (functools.reduce(getattr, k.split("."), cfg) for k in (key, other))
    raise InputError(f"{key} is {value!r} but {other} is {against!r}: {rule}; {remedy}")
