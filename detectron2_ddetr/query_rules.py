"""Which systems of the family and which of their switches can stand together."""

from .errors import InputError
from .toolbox import CfgNode

#: What the keys of MODEL.DETR must be for a meta-architecture, since it is made so.
_SYSTEMS = {
    "HDeformableDETR": {"TWO_STAGE": True},
    "DABDeformableDETR": {"TWO_STAGE": False, "WITH_BOX_REFINE": True},
    "DNDeformableDETR": {"TWO_STAGE": False, "WITH_BOX_REFINE": True},
    "DINO": {"TWO_STAGE": True, "MIXED_SELECTION": True},
}
#: The transformer that a meta-architecture has in place of the default one.
_TRANSFORMERS = {
    "DABDeformableDETR": "build_anchor_transformer",
    "DNDeformableDETR": "build_anchor_transformer",
    "DINO": "build_dino_transformer",
}
_REFINE = "set MODEL.DETR.WITH_BOX_REFINE to True"


def check_queries(cfg: CfgNode) -> None:
    """
    Reject combinations of MODEL.META_ARCHITECTURE and of the keys that say where queries come
    from, how they are refined, and which further groups train.

    Raises:
        InputError: naming the keys, the rule and the remedy.
    """
    node, system = cfg.MODEL.DETR, cfg.MODEL.META_ARCHITECTURE
    for key, value in _SYSTEMS.get(system, {}).items():
        if getattr(node, key) != value:
            _refuse(key, f"{system} has it {value}", f"set it to {value}")
    transformer = _TRANSFORMERS.get(system, node.TRANSFORMER)
    if node.TRANSFORMER == "build_deformable_transformer" != transformer:
        _refuse("TRANSFORMER", f"{system} has another", f"set it to {transformer!r}")
    anchors = transformer == "build_anchor_transformer"
    if node.TWO_STAGE and not node.WITH_BOX_REFINE:
        _refuse("TWO_STAGE", "proposals are boxes, which only refinement can use", _REFINE)
    if node.LOOK_FORWARD_TWICE and not node.WITH_BOX_REFINE:
        _refuse("LOOK_FORWARD_TWICE", "it is about refined boxes", _REFINE)
    if node.MIXED_SELECTION and not node.TWO_STAGE:
        _refuse("MIXED_SELECTION", "it is about proposals", "set TWO_STAGE True, or it to False")
    denoising = node.DENOISING
    if not denoising.ENABLED:
        return
    if not (node.TWO_STAGE or anchors):
        _refuse(
            "DENOISING.ENABLED",
            "noised boxes cannot be queries where queries start from points",
            "set TWO_STAGE and WITH_BOX_REFINE True, or it to False",
        )
    if denoising.INDICATOR and not (anchors or node.MIXED_SELECTION):
        _refuse(
            "DENOISING.INDICATOR",
            "the content of the other queries is not learned, so that no channel of it is free",
            "set it to False, or MIXED_SELECTION to True",
        )
    if denoising.NEGATIVES and not denoising.CORNER_NOISE:
        _refuse(
            "DENOISING.NEGATIVES",
            "they are told from positives by the noise on their corners",
            "set CORNER_NOISE True, or it to False",
        )


def _refuse(key: str, rule: str, remedy: str) -> None:
    raise InputError(f"MODEL.DETR.{key} does not go with other keys: {rule}; {remedy}")
