"""torch.compile of a model: one program for images of all sizes, with the same numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from .conftest import needs_compiler
from .test_inference_form import raw
from .test_meta_arch import NODE, build, image

#: None is small: where a level has but one or two cells, PyTorch makes a program of its own. The
#: first have no padding, the others have.
SIZES = [(120, 168), (168, 120), (144, 144), (128, 192), (192, 140), (100, 180)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tiny(precision, *opts):
    return build(
        # fmt: off
        "MODEL.BACKBONE.NAME", "build_tiny_backbone", NODE + "IN_FEATURES", ["fine", "coarse"],
        NODE + "NUM_FEATURE_LEVELS", 2, NODE + "ENC_LAYERS", 1, NODE + "DEC_LAYERS", 1,
        NODE + "WITH_BOX_REFINE", True, NODE + "TWO_STAGE", True,
        "SOLVER.AMP.ENABLED", precision == "bfloat16", *opts,
        # fmt: on
    ).eval()


def test_few_programs_of_fixed_sizes():
    """Padded to multiples, images of several sizes are of one, with the numbers of the model."""
    model = tiny("float32", NODE + "SIZE_DIVISIBILITY", 96)
    form = model.for_inference()
    programs, counts = CompileCounterWithBackend("eager"), []
    form.backbone.compile(dynamic=False, backend=programs)
    form.head.compile(dynamic=False, backend=programs)
    for size in [(120, 168), (100, 180), (170, 130)]:
        inputs = [{"image": image(*size)}]
        found, same = raw(form, inputs), raw(model, inputs)
        for key in ("pred_logits", "pred_boxes", "aux_outputs"):
            assert_close(found[key], same[key], rtol=1e-4, atol=1e-4)
        counts.append(programs.frame_count)
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.parametrize(
    "backend, precision",
    [("eager", "bfloat16"), pytest.param("inductor", "float32", marks=needs_compiler)],
)
def test_no_program_for_each_size(backend, precision):
    """
    As the README shows it: what the first image compiles, backbone and head, serves all; but for
    the head of images with padding.
    """
    model = tiny(precision).for_inference()
    programs = CompileCounterWithBackend(backend)
    expected = [raw(model, [{"image": image(*size)}]) for size in SIZES]
    model.backbone.compile(dynamic=True, backend=programs)
    model.head.compile(dynamic=True, backend=programs)
    counts = {True: set(), False: set()}
    for size, same in zip(SIZES, expected):
        found = raw(model, [{"image": image(*size)}])
        if precision == "float32":
            assert_close(found["interm_outputs"], same["interm_outputs"], rtol=1e-4, atol=1e-4)
            assert_close(found["pred_boxes"], same["pred_boxes"], rtol=1e-4, atol=1e-4)
        counts[size in SIZES[:3]].add(programs.frame_count)
    (without,), (both,) = counts[True], counts[False]
    assert without in (2, 3) and both - without in (1, 2)  # inductor may begin one of them anew
