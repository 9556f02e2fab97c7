"""--dry-run: the largest images with the most boxes, and nothing is written."""

import re

import pytest

from detectron2_ddetr.engine.dry_run import largest_sizes
from detectron2_ddetr.engine.run import main, run_argument_parser
from detectron2_ddetr.errors import InputError

from .conftest import CONFIGS, small_cfg
from .test_training import run, shapes  # noqa: F401

WIDE, HIGH = (480, 640), (640, 480)


@pytest.mark.parametrize(
    "shapes, opts, expected",
    [
        # Of a 640x480 image by the official rule: 800 x 1066 (SPEC: the long side is cut).
        ([WIDE], [], [(800, 1066), (800, 1066)]),
        ([HIGH], [], [(1066, 800), (1066, 800)]),
        ([WIDE, HIGH], [], [(1066, 800), (800, 1066)]),
        ([WIDE, (300, 1200)], [], [(800, 1066), (333, 1332)]),
        ([(500, 500)], ["INPUT.MIN_SIZE_TRAIN", (480, 0)], [(500, 500), (500, 500)]),
        # Windows of 384 x 600 are 800 x 1250.
        ([WIDE], ["INPUT.CROP.ENABLED", True], [(1250, 800), (800, 1250)]),
    ],
)
def test_largest_sizes(shapes, opts, expected):  # noqa: F811
    cfg = small_cfg("INPUT.MIN_SIZE_TRAIN", (480, 800), "INPUT.CROP.ENABLED", False, *opts)
    assert largest_sizes(cfg, shapes) == expected


def test_of_a_training(shapes, tmp_path):  # noqa: F811
    """Sizes and boxes by hand: 96 x 64 images with two boxes, short side 80."""
    output = tmp_path / "output"
    log = run(shapes, output, "--dry-run", opts=["SOLVER.MAX_ITER", 1000])
    found = re.search(
        r"with 2 images, padded to 120x80, and 2 boxes in each.* takes (\S+) s and (\S+) GiB", log
    )
    assert 0 < float(found[1]) < 60 and 0.1 < float(found[2]) < 20
    assert "1000 iterations take at most" in log and "Starting training" not in log
    assert not output.exists()


def test_an_update_that_is_not_finite(shapes, tmp_path):  # noqa: F811
    """Said with its cause and a remedy, as in a training."""
    opts = ["SOLVER.BASE_LR", 1e15]
    log = run(shapes, tmp_path / "output", "--dry-run", opts=opts, expected=1)
    assert "error: an update is not finite" in log and "lower SOLVER.BASE_LR" in log
    assert "process 0: " in log and "Traceback" not in log


@pytest.mark.parametrize("other", ["--resume", "--eval-only"])
def test_with_what_it_cannot_be(other):
    config = str(CONFIGS / "quick_start.yaml")
    args = run_argument_parser().parse_args(["--config-file", config, "--dry-run", other])
    with pytest.raises(InputError, match="--dry-run measures a training that begins"):
        main(args)
