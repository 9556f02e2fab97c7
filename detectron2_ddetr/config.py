"""Config keys of the family; their defaults are the multi-scale Deformable DETR of the paper."""

import logging
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import yaml

from .config_rules import check_config
from .errors import InputError, MissingFileError, UnknownKeyError
from .toolbox import TOOLBOX, CfgNode, get_cfg

logger = logging.getLogger(__name__)

#: Names of before; a config that has one of them is told the new one.
_RENAMED = {
    "MODEL.DEFORMABLE_DETR": "MODEL.DETR",
    "MODEL.DETR.CLASS_WEIGHT": "MODEL.DETR.LOSS_CE_WEIGHT",
    "MODEL.DETR.L1_WEIGHT": "MODEL.DETR.LOSS_BBOX_WEIGHT",
    "MODEL.DETR.GIOU_WEIGHT": "MODEL.DETR.LOSS_GIOU_WEIGHT",
    "MODEL.DETR.COST_L1": "MODEL.DETR.COST_BBOX",
}

#: How keys begin of what only detectron2 has. A config that it has written has them all.
ONLY_OF_DETECTRON2 = (
    "MODEL.ANCHOR_GENERATOR.", "MODEL.FPN.", "MODEL.PANOPTIC_FPN.", "MODEL.PROPOSAL_GENERATOR.",
    "MODEL.RETINANET.", "MODEL.ROI_", "MODEL.RPN.", "MODEL.SEM_SEG_HEAD.", "INPUT.MASK_FORMAT",
    "DATASETS.PROPOSAL_FILES_", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_", "DATALOADER.REPEAT_",
    "SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL",
    "TEST.KEYPOINT_OKS_SIGMAS", "TEST.PRECISE_BN.NUM_ITER", "CUDNN_BENCHMARK", "FLOAT32_PRECISION",
    "GLOBAL.HACK",
)  # fmt: skip


def add_deformable_detr_config(cfg: CfgNode) -> None:
    """
    Add the keys of this package to a detectron2 config. Keys of detectron2 are left alone.

    Raises:
        InputError: when there is a MODEL.DETR, of another project or of a first call.
    """
    if "DETR" in cfg.MODEL:
        raise InputError(
            "the config has a MODEL.DETR already: add_deformable_detr_config is called once, on a "
            "config that no other DETR has added its keys to"
        )
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
    # Batches are padded to multiples of so many pixels, which leaves fewer sizes to compile for.
    node.SIZE_DIVISIBILITY = 1
    # Classes of the data set, without a background class.
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

    # Only position and box of a query come from its proposal, its content is learned. Needs
    # TWO_STAGE.
    node.MIXED_SELECTION = False
    # The loss of a layer's boxes also reaches the layer before. Needs WITH_BOX_REFINE.
    node.LOOK_FORWARD_TWICE = False

    # Queries that exist in training only and learn from each target REPEATS times (H-DETR); 0 for
    # none.
    node.ONE_TO_MANY = CfgNode()
    node.ONE_TO_MANY.NUM_QUERIES = 0
    node.ONE_TO_MANY.REPEATS = 6
    node.ONE_TO_MANY.LOSS_WEIGHT = 1.0

    # Noised targets as queries, in training only (DN-DETR, DINO). Needs TWO_STAGE or anchors.
    node.DENOISING = CfgNode()
    node.DENOISING.ENABLED = False
    # About so many noised copies of the boxes of an image, in as many groups as that takes; or
    # NUM_GROUPS groups, whatever the number of boxes.
    node.DENOISING.NUM_QUERIES = 100
    node.DENOISING.NUM_GROUPS = 0
    # How likely a class is drawn anew; how far a box is moved, 1 by up to half its size.
    node.DENOISING.LABEL_NOISE = 0.25
    node.DENOISING.BOX_NOISE = 1.0
    # Queries further from their target, which have to say that there is nothing.
    node.DENOISING.NEGATIVES = True
    # The noise is on the corners, or on centre and size.
    node.DENOISING.CORNER_NOISE = True
    # A channel of the content tells these queries from others. Needs learned content.
    node.DENOISING.INDICATOR = False

    # Training computes the activations of these parts again instead of keeping them.
    node.ACTIVATION_CHECKPOINTING = CfgNode()
    node.ACTIVATION_CHECKPOINTING.BACKBONE = False
    node.ACTIVATION_CHECKPOINTING.ENCODER = False
    node.ACTIVATION_CHECKPOINTING.DECODER = False

    # The backbone of timm that MODEL.BACKBONE.NAME "build_timm_backbone" builds; its maps are named
    # stride8 and so on. FROZEN_NORM leaves BatchNorm as it is loaded.
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = ""
    cfg.MODEL.TIMM.FROZEN_NORM = False

    # The network that MODEL.BACKBONE.NAME "build_dat_backbone" builds, such as "DAT-T" or
    # "DAT-T++", and which of its maps it puts out: stride4, stride8, stride16, stride32.
    # DROP_PATH_RATE is how often training leaves out the last block for an image; blocks before
    # it are left out less.
    cfg.MODEL.DAT = CfgNode()
    cfg.MODEL.DAT.NAME = "DAT-T"
    cfg.MODEL.DAT.OUT_FEATURES = ["stride8", "stride16", "stride32"]
    cfg.MODEL.DAT.DROP_PATH_RATE = 0.0

    # Loss. The same weights hold for every decoder layer and for the encoder.
    node.FOCAL_ALPHA = 0.25
    # Of queries without object in the class loss of DETR, which has no focal loss.
    node.NO_OBJECT_WEIGHT = 0.1
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

    # What SOLVER.AMP.ENABLED computes matrix products and convolutions in, on GPUs and CPUs, in
    # training and evaluation: "bfloat16", or on GPUs "float16".
    cfg.SOLVER.AMP.PRECISION = "bfloat16"

    # Evaluation and prediction compute most of the linear layers of the transformer in 8 bits, on
    # CPUs.
    cfg.TEST.INT8 = False

    # In how many passes, one after the other, a process computes the gradient of its share of
    # IMS_PER_BATCH: less memory, the same update.
    cfg.SOLVER.ACCUMULATION_STEPS = 1

    # A step whose loss or gradient is not finite is taken once more, with hooks on every module and
    # operation that find the first which is not; True has them in every step, slowly, for what
    # does not repeat.
    cfg.SOLVER.FIND_NONFINITE = False

    # How many images an update has for which all numbers of SOLVER are made; 0 for IMS_PER_BATCH,
    # whatever it is. With another IMS_PER_BATCH, BATCH_RULE says what to do: "keep" rates and
    # schedule, "scale" them, or "accumulate" the gradient until it is of as many.
    cfg.SOLVER.REFERENCE_BATCH = 0
    cfg.SOLVER.BATCH_RULE = "keep"

    # An exponential moving average of the weights is what is evaluated and saved as the model, with
    # this decay, such as 0.999; 0 for none.
    cfg.SOLVER.EMA_DECAY = 0.0

    # After so many evaluations without a better AP the training ends; 0 for never.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0

    # How many periodic checkpoints stay, the newest; 0 for all.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 0

    # Where data sets of one's own lie: [name, json, folder of images] of each. A run writes it into
    # its config.yaml, so that its folder is enough to evaluate it.
    cfg.DATASETS.COCO_JSON = []
    # The names of the classes, by class number. A run writes them into its config.yaml; where they
    # are given, the data sets must have them.
    cfg.DATASETS.CLASS_NAMES = []

    # How the long side follows the short one: "truncate" (official) or "round" (detectron2).
    # A 640x480 image becomes 1066x800 or 1067x800.
    cfg.INPUT.RESIZE_RULE = "truncate"
    # Short sides of the resize before the crop (INPUT.CROP), which has no maximum size.
    cfg.INPUT.CROP_RESIZE_SIZES = (400, 500, 600)


def load_config(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """
    A frozen config from a YAML file and "KEY VALUE" pairs.

    Where a key wants a tuple or a list, one value alone is taken for its only entry. Without
    detectron2, keys of the file that are about parts that only it has are left aside.

    Raises:
        InputError: for a file that is not YAML, a key that does not exist (the message has the
            nearest ones), a value of another type, and keys that contradict each other, see
            :func:`check_config`.
        MissingFileError: when the file, or one that it is based on, does not exist.
    """
    if config_file.endswith(".py"):
        raise InputError(
            f"{config_file} is no YAML: a LazyConfig is for tools/lazyconfig_train_net.py of "
            "detectron2; here, give the .yaml of the same name"
        )
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    content = dict(leaves(_load_yaml(config_file, cfg.VERSION)))
    if TOOLBOX == "host":
        content = _without_foreign(content, config_file)
    for key, value in content.items():
        _set(cfg, key, value, f"{config_file}: ")
    for word in opts:
        if isinstance(word, str) and word.startswith("--"):
            raise InputError(f"{word} stands after the KEY VALUE pairs: options go before them")
    if len(opts) % 2:
        raise InputError(
            f"KEY VALUE pairs: {len(opts)} words cannot be paired ({' '.join(map(str, opts))}); "
            'give each key one value, and quote a value with blanks, as in "(1, 2)"'
        )
    for key, value in zip(opts[::2], opts[1::2]):
        _set(cfg, str(key), value)
    check_config(cfg)
    cfg.freeze()
    return cfg


def _load_yaml(config_file: str, version: int) -> dict[str, Any]:
    """The content of a YAML file and of those that it names by _BASE_."""
    try:
        # detectron2 itself would run the Python code that a YAML tag can name.
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
    except FileNotFoundError as error:
        if os.path.abspath(config_file) == os.path.abspath(error.filename):
            raise MissingFileError(f"config file {config_file} does not exist") from error
        raise MissingFileError(
            f"{config_file}: its _BASE_ {error.filename} does not exist; the path is relative to "
            "the file that names it"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config_file}: not YAML that can be read: {error}") from error
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise InputError(
            f"{config_file}: its _BASE_ leads back to a file that was read before; the path is "
            "relative to the file that names it"
        ) from error
    except (AttributeError, TypeError) as error:
        raise InputError(f"{config_file}: a config must be a mapping of keys to values") from error
    if not isinstance(content, dict):
        raise InputError(f"{config_file}: a config must be a mapping of keys to values")
    if content.pop("VERSION", version) != version:
        raise InputError(
            f"{config_file}: has another VERSION than {version}; let detectron2 upgrade it"
        )
    return content


def _without_foreign(content: dict[str, Any], config_file: str) -> dict[str, Any]:
    """Without the keys that detectron2 has written of parts that are none of a DETR's."""
    foreign = [key for key in content if key.startswith(ONLY_OF_DETECTRON2)]
    if foreign:
        logger.warning(
            f"{config_file}: keys of parts that only detectron2 has are left aside, {len(foreign)} "
            f"in all, such as {foreign[0]}"
        )
    return {key: value for key, value in content.items() if key not in foreign}


def _set(cfg: CfgNode, key: str, value: Any, where: str = "") -> None:
    """
    Sets a dotted key to a value, or to what the text of one means.

    Args:
        where: begins every message.
    """
    node = cfg
    for depth, part in enumerate(key.split("."), start=1):
        name = ".".join(key.split(".")[:depth])
        if name in _RENAMED:
            new = _RENAMED[name] + key[len(name) :]
            raise UnknownKeyError(f"{where}{key} has another name now: {_RENAMED.get(new, new)}")
        if not isinstance(node, dict) or part not in node:
            raise UnknownKeyError(f"{where}{_unknown(key, cfg)}")
        node = node[part]
    if isinstance(node, dict):
        raise InputError(f"{where}{key} is a group of keys: {', '.join(node)}")
    decoded = CfgNode._decode_cfg_value(value)
    if isinstance(node, (tuple, list)) and not isinstance(decoded, (tuple, list)):
        decoded = type(node)([decoded])
    elif isinstance(node, float) and type(decoded) is int:
        decoded = float(decoded)
    try:
        cfg.merge_from_list([key, decoded])
    except ValueError as error:
        raise InputError(
            f"{where}{key} must be a {type(node).__name__}, such as {node!r}, got {value!r}"
        ) from error


def _unknown(key: str, cfg: CfgNode) -> str:
    """Says that a key does not exist, and which may have been meant."""
    keys = [name for name, _ in leaves(cfg)]
    ends = {name.split(".")[-1]: name for name in keys}
    wanted = key.upper()
    near = get_close_matches(wanted, keys, n=2, cutoff=0.75)
    near += [ends[e] for e in get_close_matches(wanted.split(".")[-1], ends, n=2, cutoff=0.75)]
    said = f"there is no key {key}"
    return f"{said}; did you mean {' or '.join(dict.fromkeys(near))}?" if near else said


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested dict."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
