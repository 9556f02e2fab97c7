"""What a config may not be is refused before anything is built: key, value and remedy are named."""

import math
import re

import pytest
import torch

from detectron2_ddetr import Trainer, add_deformable_detr_config, load_config
from detectron2_ddetr.config_rules import check_config, check_trainer_config, schedule_note
from detectron2_ddetr.errors import InputError, UnknownKeyError, UnsupportedError
from detectron2_ddetr.toolbox import META_ARCH_REGISTRY, TOOLBOX, get_cfg

from .conftest import small_cfg
from .test_config import BASE, NODE

ARCH = "MODEL.META_ARCHITECTURE"
DETR = [ARCH, "DETR", NODE + "TRANSFORMER", "build_dense_transformer",
        NODE + "CRITERION", "build_softmax_criterion", NODE + "NUM_FEATURE_LEVELS", 1,
        NODE + "IN_FEATURES", ["res5"]]  # fmt: skip
#: Deformable DETR ++.
PP = [NODE + "WITH_BOX_REFINE", True, NODE + "TWO_STAGE", True]


@pytest.mark.parametrize(
    "opts, words",
    [
        ([NODE + "TWO_STAGE", True], ["TWO_STAGE", "WITH_BOX_REFINE", "set"]),
        ([NODE + "HIDDEN_DIM", 100], ["HIDDEN_DIM", "100", "NHEADS", "8"]),
        ([NODE + "HIDDEN_DIM", 48, NODE + "NHEADS", 4], ["HIDDEN_DIM", "48", "32"]),
        ([NODE + "NUM_FEATURE_LEVELS", 2], ["NUM_FEATURE_LEVELS", "2", "IN_FEATURES", "res3"]),
        ([NODE + "NUM_CLASSES", 0], ["NUM_CLASSES", "0"]),
        ([NODE + "NUM_QUERIES", 0], ["NUM_QUERIES", "0"]),
        ([NODE + "DEC_LAYERS", 0], ["DEC_LAYERS", "0"]),
        (["INPUT.RESIZE_RULE", "floor"], ["RESIZE_RULE", "floor", "truncate", "round"]),
        ([NODE + "LOOK_FORWARD_TWICE", True], ["LOOK_FORWARD_TWICE", "set", "WITH_BOX_REFINE"]),
        ([NODE + "MIXED_SELECTION", True], ["MIXED_SELECTION", "set", "TWO_STAGE"]),
        ([NODE + "DENOISING.ENABLED", True], ["DENOISING.ENABLED", "points", "set", "TWO_STAGE"]),
        (
            [*PP, NODE + "DENOISING.ENABLED", True, NODE + "DENOISING.INDICATOR", True],
            ["DENOISING.INDICATOR", "not learned", "MIXED_SELECTION"],
        ),
        (
            [*PP, NODE + "DENOISING.ENABLED", True, NODE + "DENOISING.CORNER_NOISE", False],
            ["DENOISING.NEGATIVES", "corners", "CORNER_NOISE"],
        ),
        ([*PP, ARCH, "DINO"], ["MIXED_SELECTION is False", "DINO", "set True"]),
        (
            [*PP, NODE + "MIXED_SELECTION", True, ARCH, "DINO"],
            ["TRANSFORMER", "DINO", "'build_dino_transformer'"],
        ),
        ([ARCH, "HDeformableDETR"], ["TWO_STAGE is False", "HDeformableDETR", "set True"]),
        ([*PP, ARCH, "DABDeformableDETR"], ["TWO_STAGE", "DABDeformableDETR", "False"]),
        ([ARCH, "DETR"], ["NUM_FEATURE_LEVELS is 4", "DETR", "set 1"]),
        ([*DETR, NODE + "TWO_STAGE", True], ["TWO_STAGE is True", "DETR", "set False"]),
        ([*DETR, NODE + "ONE_TO_MANY.NUM_QUERIES", 5], ["NUM_QUERIES is 5", "DETR", "set 0"]),
        (
            [*DETR, NODE + "TRANSFORMER", "build_deformable_transformer"],
            ["TRANSFORMER", "DETR", "set 'build_dense_transformer'"],
        ),
        (
            [*DETR, NODE + "CRITERION", "build_set_criterion"],
            ["CRITERION", "no object", "set 'build_softmax_criterion'"],
        ),
        (
            [NODE + "CRITERION", "build_softmax_criterion"],
            ["CRITERION", "no object", "set 'build_set_criterion'"],
        ),
        ([ARCH, "DNDeformableDETR"], ["WITH_BOX_REFINE", "DNDeformableDETR", "True"]),
    ],
)
def test_contradictions_are_refused(opts, words):
    """The message gives keys, values and the remedy; the builder of the model checks too."""
    with pytest.raises(ValueError) as error:
        load_config(BASE, opts)
    assert all(word in str(error.value) for word in words), error.value
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.merge_from_file(BASE)
    cfg.merge_from_list(opts)
    with pytest.raises(ValueError):
        check_config(cfg)


#: A value beyond, and the nearest that is not; of every key with a range.
RANGES = {
    # fmt: off
    **{NODE + key: (0, 1) for key in (
        "NUM_CLASSES", "NUM_QUERIES", "DIM_FEEDFORWARD", "DEC_LAYERS", "ENC_N_POINTS",
        "DEC_N_POINTS", "SIZE_DIVISIBILITY", "ONE_TO_MANY.REPEATS", "DENOISING.NUM_QUERIES")},
    NODE + "ONE_TO_MANY.NUM_QUERIES": (-1, 0), NODE + "DENOISING.NUM_GROUPS": (-1, 0),
    NODE + "HIDDEN_DIM": (0, 32), NODE + "NHEADS": (0, 1), NODE + "ENC_LAYERS": (-1, 0),
    **{NODE + key: (-0.01, 0.0) for key in (
        "LOSS_CE_WEIGHT", "LOSS_BBOX_WEIGHT", "LOSS_GIOU_WEIGHT", "COST_CLASS", "COST_BBOX",
        "COST_GIOU", "DROPOUT", "FOCAL_ALPHA", "ONE_TO_MANY.LOSS_WEIGHT",
        "DENOISING.LABEL_NOISE", "DENOISING.BOX_NOISE")},
    NODE + "NO_OBJECT_WEIGHT": (0.0, 0.01),
    "MODEL.PIXEL_STD": ([1.0, 0.0, 1.0], [1.0, 0.01, 1.0]),
    "INPUT.MIN_SIZE_TRAIN": ((800, -1), (800, 0)), "INPUT.MAX_SIZE_TRAIN": (0, 1),
    "INPUT.MIN_SIZE_TEST": (-1, 0), "INPUT.MAX_SIZE_TEST": (0, 1),
    "INPUT.CROP_RESIZE_SIZES": ((400, -1), (400, 0)),
    "SOLVER.BASE_LR": (0.0, 1e-9), "SOLVER.BACKBONE_MULTIPLIER": (-0.1, 0.0),
    "SOLVER.LINEAR_PROJ_MULTIPLIER": (-0.1, 0.0), "SOLVER.WEIGHT_DECAY": (-0.1, 0.0),
    "SOLVER.IMS_PER_BATCH": (0, 1), "SOLVER.MAX_ITER": (0, 1), "SOLVER.CHECKPOINT_PERIOD": (0, 1),
    "TEST.AUG.MIN_SIZES": ((400, -1), (400, 0)), "TEST.AUG.MAX_SIZE": (0, 1),
    "TEST.DETECTIONS_PER_IMAGE": (0, 1), "DATALOADER.NUM_WORKERS": (-1, 0),
    **{f"SOLVER.{key}": (-0.1, 0.0) for key in (
        "WEIGHT_DECAY_NORM", "BIAS_LR_FACTOR", "BASE_LR_END", "GAMMA", "WARMUP_FACTOR")},
    "SOLVER.CHECKPOINTS_TO_KEEP": (-1, 0), "SOLVER.ACCUMULATION_STEPS": (0, 1),
    "SOLVER.REFERENCE_BATCH": (-1, 0), "SOLVER.EARLY_STOP_PATIENCE": (-1, 0),
    "SOLVER.EMA_DECAY": (-0.01, 0.0),
    "SOLVER.WARMUP_ITERS": (-1, 0), "SOLVER.STEPS": ((0, 5), (1, 5)),
    "MODEL.BACKBONE.FREEZE_AT": (-1, 0), "SEED": (2**32, 2**32 - 1),
    # fmt: on
}


@pytest.mark.parametrize("key", RANGES)
def test_numbers_that_cannot_be(key):
    """They would train to no purpose, or stop long after the start; NaN is refused too."""
    bad, good = RANGES[key]
    assert load_config(BASE, [key, str(good)])
    values = [bad, math.nan, math.inf] if isinstance(bad, float) else [bad]
    for value in values:
        with pytest.raises(InputError, match=rf"^{key} must be .*, got "):
            load_config(BASE, [key, value])


@pytest.mark.parametrize(
    "key",
    [
        "SOLVER.LR_SCHEDULER_NAME",
        "SOLVER.WARMUP_METHOD",
        "SOLVER.AMP.PRECISION",
        "SOLVER.BATCH_RULE",
        "INPUT.RESIZE_RULE",
    ],
)
def test_names_that_are_none_of_the_choices(key):
    with pytest.raises(InputError, match=f"^{key} must be '.*' or '.*', got 'cosine'"):
        load_config(BASE, [key, "cosine"])


@pytest.mark.parametrize(
    ("key", "value", "there"),
    [
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "'WarmupCosineLR'"),
        ("SOLVER.WARMUP_METHOD", "constant", "'linear'"),
        ("MODEL.RESNETS.NORM", "GN", "'FrozenBN' or 'BN'"),
    ],
)
def test_what_only_detectron2_has(key, value, there):
    if TOOLBOX == "detectron2":
        assert load_config(BASE, [key, str(value)])
        return
    with pytest.raises(UnsupportedError, match=f"^{key} .* needs detectron2; .*{there}"):
        load_config(BASE, [key, str(value)])


def test_schedules_that_cannot_be():
    cosine = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR", 0.1]
    assert load_config(BASE, [*cosine, "SOLVER.BASE_LR_END", 0.1])
    with pytest.raises(InputError, match=r"BASE_LR_END \(0.2\) is above SOLVER.BASE_LR \(0.1\)"):
        load_config(BASE, [*cosine, "SOLVER.BASE_LR_END", 0.2])
    for steps in ("(30, 20)", "(30, 30)"):
        with pytest.raises(InputError, match="SOLVER.STEPS must rise"):
            load_config(BASE, ["SOLVER.STEPS", steps])


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupMultiStepLR"])
def test_schedules_that_end_in_their_warm_up(name):
    """Said before training, where the rates of the scheduler itself never come near BASE_LR."""
    from detectron2_ddetr.toolbox import build_lr_scheduler

    for iterations, warm_up in ((40, 40), (40, 50), (40, 39), (40, 5)):
        opts = ["SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", iterations]
        opts += ["SOLVER.WARMUP_ITERS", warm_up, "SOLVER.STEPS", "()", "SOLVER.BASE_LR", 1.0]
        cfg = load_config(BASE, opts)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler, rates = build_lr_scheduler(cfg, optimizer), []
        for _ in range(iterations):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        note = schedule_note(cfg)
        assert (note is None) == (warm_up < iterations)
        if note is not None:
            assert re.match(r"SOLVER.MAX_ITER \(40\) is not above SOLVER.WARMUP_ITERS", note)
            assert ("near 0" in note) == (max(rates) < 1e-2) == (name == "WarmupCosineLR")
            assert max(rates) < 1


#: What detectron2 knows and the trainer here would leave out; a value, and a word of the remedy.
NOT_FOLLOWED = {
    "MODEL.MASK_ON": (True, "boxes"),
    "MODEL.KEYPOINT_ON": (True, "boxes"),
    "MODEL.LOAD_PROPOSALS": (True, "makes its own"),
    "SOLVER.REFERENCE_WORLD_SIZE": (8, "BATCH_RULE fit a recipe"),
    "TEST.PRECISE_BN.ENABLED": (True, "of training"),
    "TEST.EXPECTED_RESULTS": ([["bbox", "AP", 40.0]], "tolerance"),
    "VIS_PERIOD": (100, "ddetr visualize"),
}


@pytest.mark.parametrize("key", NOT_FOLLOWED)
def test_what_the_trainer_would_not_do(key):
    """Refused by it, but not by the model, which other trainers train as well."""
    value, word = NOT_FOLLOWED[key]
    check_trainer_config(load_config(BASE, ["MODEL.DEVICE", "cpu"]))
    cfg = small_cfg(key, value)
    check_config(cfg)
    with pytest.raises(InputError, match=rf"{key} .*{word}"):
        Trainer(cfg)


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("TEST.EXPECTED_RESULTS", [["segm", "AP", 40.0, 0.2]], "EXPECTED_RESULTS must be .*'segm'"),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", "40", 0.2]], "EXPECTED_RESULTS must be .*'40'"),
        ("SOLVER.STEPS", (5, 8), r"SOLVER.STEPS has SOLVER.MAX_ITER \(8\).*leave that one out"),
    ],
)
def test_what_would_fail_after_a_training_or_in_its_schedule(key, value, match):
    cfg = small_cfg("SOLVER.MAX_ITER", 8, key, value)
    with pytest.raises(InputError, match=match):
        check_trainer_config(cfg)


def test_the_trainer_is_for_this_family():
    with pytest.raises(InputError, match="META_ARCHITECTURE Other is not of the family"):
        Trainer.build_model(small_cfg("MODEL.META_ARCHITECTURE", "Other"))
    with pytest.raises(UnknownKeyError, match="'Nothing' is not registered; there is .*Deform"):
        Trainer.build_model(small_cfg("MODEL.META_ARCHITECTURE", "Nothing"))


@META_ARCH_REGISTRY.register()
class Other(torch.nn.Module):
    pass


@pytest.mark.parametrize("value", [1.01, -0.5])
def test_focal_alpha(value):
    assert load_config(BASE, [NODE + "FOCAL_ALPHA", -1.0])  # no weighting
    with pytest.raises(InputError, match="FOCAL_ALPHA must be from 0 to 1"):
        load_config(BASE, [NODE + "FOCAL_ALPHA", value])


def test_what_is_no_number():
    with pytest.raises(InputError, match="MIN_SIZE_TRAIN must be at least 0, got .*'a'"):
        load_config(BASE, ["INPUT.MIN_SIZE_TRAIN", "('a',)"])


def test_a_matcher_needs_a_cost():
    costs = [NODE + "COST_CLASS", 0.0, NODE + "COST_BBOX", 0.0, NODE + "COST_GIOU", 0.0]
    with pytest.raises(InputError, match="all 0"):
        load_config(BASE, costs)


@pytest.mark.parametrize("key", [NODE + "TRANSFORMER", NODE + "CRITERION", "MODEL.BACKBONE.NAME"])
def test_names_that_nothing_is_registered_under(key):
    """Those that there are make the remedy; a KeyError, as detectron2's registries raise."""
    from detectron2_ddetr.toolbox import build_model

    with pytest.raises(UnknownKeyError, match=f"{key} 'nothing' is not registered; there is .*b"):
        build_model(small_cfg(key, "nothing"))


def test_the_meta_architecture_checks_its_config():
    from detectron2_ddetr.toolbox import build_model

    with pytest.raises(ValueError, match="TWO_STAGE"):
        build_model(small_cfg(NODE + "TWO_STAGE", True))
