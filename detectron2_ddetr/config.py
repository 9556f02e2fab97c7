"""Config keys of the family; their defaults are the multi-scale Deformable DETR of the paper."""

from collections.abc import Sequence

from .toolbox import CfgNode, get_cfg

#: Names of before; a config that has one of them is told the new one.
_RENAMED = {
    "MODEL.DEFORMABLE_DETR": "MODEL.DETR",
    "MODEL.DETR.CLASS_WEIGHT": "MODEL.DETR.LOSS_CE_WEIGHT",
    "MODEL.DETR.L1_WEIGHT": "MODEL.DETR.LOSS_BBOX_WEIGHT",
    "MODEL.DETR.GIOU_WEIGHT": "MODEL.DETR.LOSS_GIOU_WEIGHT",
    "MODEL.DETR.COST_L1": "MODEL.DETR.COST_BBOX",
}


def add_deformable_detr_config(cfg: CfgNode) -> None:
    """Add the keys of this package to a detectron2 config. Keys of detectron2 are left alone."""
    for old, new in _RENAMED.items():
        cfg.register_renamed_key(old, new)
    cfg.MODEL.DETR = CfgNode()
    node = cfg.MODEL.DETR

    # Names in DETR_TRANSFORMER_REGISTRY and DETR_CRITERION_REGISTRY.
    node.TRANSFORMER = "build_deformable_transformer"
    node.CRITERION = "build_set_criterion"

    # Backbone outputs to read, from high to low resolution.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    # Levels of the transformer; those beyond IN_FEATURES are made by stride-2 convolutions.
    node.NUM_FEATURE_LEVELS = 4
    # Classes of the data set. There is no background class.
    node.NUM_CLASSES = 80
    node.NUM_QUERIES = 300

    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.ENC_LAYERS = 6
    node.DEC_LAYERS = 6
    node.DIM_FEEDFORWARD = 1024
    node.DROPOUT = 0.1
    # Samples per head and level.
    node.ENC_N_POINTS = 4
    node.DEC_N_POINTS = 4
    # Each decoder layer refines the boxes of the one before.
    node.WITH_BOX_REFINE = False
    # Queries start from boxes that the encoder proposes. Needs WITH_BOX_REFINE.
    node.TWO_STAGE = False

    # Loss. The same weights hold for every decoder layer and for the encoder.
    node.FOCAL_ALPHA = 0.25
    node.LOSS_CE_WEIGHT = 2.0
    node.LOSS_BBOX_WEIGHT = 5.0
    node.LOSS_GIOU_WEIGHT = 2.0
    # Matching cost.
    node.COST_CLASS = 2.0
    node.COST_BBOX = 5.0
    node.COST_GIOU = 2.0

    # Learning rate factors of the backbone, and of the layers that say where to sample
    # (sampling_offsets, reference_points).
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.LINEAR_PROJ_MULTIPLIER = 0.1

    # How the long side follows the short one: "truncate" (official) or "round" (detectron2).
    # A 640x480 image becomes 1066x800 or 1067x800.
    cfg.INPUT.RESIZE_RULE = "truncate"
    # Short sides of the resize before the crop (INPUT.CROP), which has no maximum size.
    cfg.INPUT.CROP_RESIZE_SIZES = (400, 500, 600)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """
    A frozen config from a YAML file and "KEY VALUE" pairs.

    Raises:
        ValueError: when keys contradict each other, see :func:`check_config`.
        KeyError: for a key that does not exist; the message names it.
    """
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    # detectron2 itself would run the Python code that a YAML tag can name.
    cfg.merge_from_file(config_file, allow_unsafe=False)
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # yacs' way to say that a key does not exist
        raise KeyError(str(error)) from error
    check_config(cfg)
    cfg.freeze()
    return cfg


def check_config(cfg: CfgNode) -> None:
    """
    Reject contradictory keys before anything is built.

    Raises:
        ValueError: naming the keys, their values and the remedy.
    """
    node = cfg.MODEL.DETR
    prefix = "MODEL.DETR"
    if node.TWO_STAGE and not node.WITH_BOX_REFINE:
        raise ValueError(
            f"{prefix}.TWO_STAGE is True but {prefix}.WITH_BOX_REFINE is False: proposals are "
            "boxes, which only refinement can use. Set WITH_BOX_REFINE to True"
        )
    if node.HIDDEN_DIM % node.NHEADS or node.HIDDEN_DIM % 32:
        raise ValueError(
            f"{prefix}.HIDDEN_DIM ({node.HIDDEN_DIM}) must be divisible by NHEADS "
            f"({node.NHEADS}) and by 32 (groups of the GroupNorm)"
        )
    if node.NUM_FEATURE_LEVELS < len(node.IN_FEATURES):
        raise ValueError(
            f"{prefix}.NUM_FEATURE_LEVELS ({node.NUM_FEATURE_LEVELS}) is less than the number of "
            f"IN_FEATURES {list(node.IN_FEATURES)}: drop features or add levels"
        )
    for key in ("NUM_CLASSES", "NUM_QUERIES", "DEC_LAYERS", "ENC_N_POINTS", "DEC_N_POINTS"):
        if node[key] < 1:
            raise ValueError(f"{prefix}.{key} must be at least 1, got {node[key]}")
    if cfg.INPUT.RESIZE_RULE not in ("truncate", "round"):
        raise ValueError(
            f"INPUT.RESIZE_RULE must be 'truncate' or 'round', got {cfg.INPUT.RESIZE_RULE!r}"
        )
