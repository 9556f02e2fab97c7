"""A training of each relative: resumed equals uninterrupted, with an average, passes, 16 bits."""

import pytest
from torch.testing import assert_close

from .test_accumulation import resumed_and_whole
from .test_training import assert_same_run, shapes  # noqa: F401

NODE = "MODEL.DETR."
QUERIES = [NODE + "TWO_STAGE", True, NODE + "MIXED_SELECTION", True,
           NODE + "LOOK_FORWARD_TWICE", True]  # fmt: skip
ANCHORS = [NODE + "TRANSFORMER", "build_anchor_transformer"]
DENOISING = [NODE + "DENOISING.ENABLED", True]
SYSTEMS = {
    "HDeformableDETR": [*QUERIES, NODE + "ONE_TO_MANY.NUM_QUERIES", 10],
    "DABDeformableDETR": ANCHORS,
    "DNDeformableDETR": [*ANCHORS, *DENOISING, NODE + "DENOISING.INDICATOR", True],
    "DINO": [*QUERIES, *DENOISING, NODE + "TRANSFORMER", "build_dino_transformer"],
    "DETR": [NODE + "TRANSFORMER", "build_dense_transformer", NODE + "CRITERION",
             "build_softmax_criterion", NODE + "NUM_FEATURE_LEVELS", 1,
             NODE + "IN_FEATURES", ["res5"], NODE + "WITH_BOX_REFINE", False],  # fmt: skip
    "DeformableDETR, deformable convolution": [
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True],
        "MODEL.RESNETS.DEFORM_MODULATED", True],  # fmt: skip
    "DeformableDETR, DAT": [
        "MODEL.BACKBONE.NAME", "build_dat_backbone", "MODEL.DAT.NAME", "DAT-XS",
        NODE + "IN_FEATURES", ["stride8", "stride16", "stride32"],
        NODE + "ACTIVATION_CHECKPOINTING.BACKBONE", True],  # fmt: skip
}
#: Each with all of them, since none knows the others.
EVERYTHING = ["SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.EMA_DECAY", 0.5, "SOLVER.AMP.ENABLED", True,
              NODE + "ACTIVATION_CHECKPOINTING.DECODER", True, "SOLVER.CHECKPOINT_PERIOD", 4,
              "MODEL.RESNETS.NORM", "FrozenBN"]  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
def test_resumed_equals_uninterrupted(system, shapes, tmp_path):  # noqa: F811
    """To the bit: the noise goes on where it was, too, and the depth that is left out."""
    opts = ["MODEL.META_ARCHITECTURE", system.partition(",")[0], *SYSTEMS[system], *EVERYTHING]
    runs = resumed_and_whole(shapes, tmp_path, opts)
    trained = [r["trainer"]["hooks"]["WeightAverage"].pop("trained_weights") for r in runs]
    assert_close(*trained, rtol=0, atol=0)
    assert_same_run(*runs)
