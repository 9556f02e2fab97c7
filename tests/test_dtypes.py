"""`model.half()`, `.bfloat16()` and `.double()`: what the model is given follows its weights."""

import copy

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import build_optimizer
from detectron2_ddetr.modeling import sigmoid_topk
from detectron2_ddetr.modeling.precision import at_least_float32
from detectron2_ddetr.toolbox import build_model

from .conftest import FAMILY, TWO_STAGE, not_ranked, seeded, small_cfg
from .modeling_cases import randomise
from .test_gradients import without_gradient
from .test_meta_arch import sample

DTYPES = [torch.float64, torch.float16, torch.bfloat16]
NODE = "MODEL.DETR."


def config(variant):
    opts = [NODE + "HIDDEN_DIM", 64, "MODEL.BACKBONE.FREEZE_AT", 0]
    return small_cfg(*opts, config=FAMILY[variant])


def pair(variant, dtype):
    """The model in `dtype`, and in float32 with the same, rounded, weights and statistics."""
    torch.manual_seed(0)
    model = build_model(config(variant)).eval()
    randomise(model.head, std=0.1)
    model = model.to(dtype)
    return model, copy.deepcopy(model).float()


def batch():
    """Padded, of two types of numbers, one image without boxes."""
    second = sample(60, 90, [])
    return [sample(97, 131), {**second, "image": second["image"].float()}]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", FAMILY)
def test_evaluates(variant, dtype):
    """Only the weights are rounded: boxes stay float32, and so does what is looked around."""
    model, exact = pair(variant, dtype)
    with torch.no_grad():
        outputs, expected = (m.network_outputs(m.preprocess_image(batch())) for m in (model, exact))
        results = model(batch())
    assert outputs["pred_logits"].dtype == dtype
    assert outputs["pred_boxes"].dtype == torch.promote_types(dtype, torch.float32)
    assert all(r["instances"].scores.isfinite().all() for r in results)
    assert all(len(r["instances"]) > 0 for r in results)
    eps = max(torch.finfo(dtype).eps, 1e-4)
    if variant in TWO_STAGE and dtype != torch.float64:  # another order of the best tokens
        first, other = (x["pred_logits"].float().sort(1).values for x in (outputs, expected))
        assert_close(first, other, rtol=0, atol=8 * eps)
        return
    for key, tolerance in (("pred_logits", 2 * eps), ("pred_boxes", max(eps / 8, 1e-4))):
        assert_close(outputs[key].double(), expected[key].double(), rtol=0, atol=tolerance)
    if dtype == torch.float64:
        with torch.no_grad():
            for ours, theirs in zip(results, exact(batch())):
                scores = (x["instances"].scores.double() for x in (ours, theirs))
                assert_close(*scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", FAMILY)
def test_trains(variant, dtype):
    """Losses of at least 32 bits near those of float32, gradients of the weights, an update."""
    model, exact = (m.train() for m in pair(variant, dtype))
    losses, expected = (seeded(m, batch()) for m in (model, exact))
    tolerance = 1e-4 if dtype == torch.float64 else 0.05
    for name, loss in losses.items():
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        if dtype == torch.float64 or not_ranked(variant, name):
            assert_close(loss.float(), expected[name], rtol=tolerance, atol=tolerance)
    assert without_gradient(model, batch()) == []
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in parameters)
    before = [p.detach().clone() for p in parameters]
    build_optimizer(config(variant), model).step()
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
def test_at_least_float32(dtype):
    x = torch.tensor([1.5, -2.25], dtype=dtype, requires_grad=True)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert at_least_float32(x).dtype == expected
    assert (at_least_float32(x) is x) == (dtype == expected)


def test_postprocessing_does_not_round():
    """Scores of 16-bit logits in float32: their order is that of the logits."""
    logits = torch.linspace(-8, -2, 60).bfloat16().view(1, 20, 3)
    scores, labels, boxes = sigmoid_topk(logits, torch.rand(1, 20, 4), 10)
    assert scores.dtype == boxes.dtype == torch.float32
    expected = [1 / (1 + torch.exp(-x.double())) for x in logits.flatten()]
    best = sorted(expected, reverse=True)[:10]
    assert_close(scores[0].double(), torch.stack(best), rtol=1e-6, atol=0)
