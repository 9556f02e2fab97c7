"""SOLVER.AMP: the network's products in 16 bits, in training and evaluation, and nothing else."""

import shutil

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.config_rules import check_trainer_config
from detectron2_ddetr.engine import device
from detectron2_ddetr.errors import InputError

from .conftest import FAMILY, PROCESSOR, not_ranked, seeded, small_cfg
from .test_meta_arch import build, sample
from .test_training import assert_same_run, last_checkpoint, run, shapes  # noqa: F401

AMP = ["SOLVER.AMP.ENABLED", True]


def batch():
    return [sample(97, 131), sample(60, 90, seed=1)]


def pair(variant):
    """The same model in bfloat16 and in float32."""
    low, exact = (build(*opts, config=FAMILY[variant]) for opts in (AMP, []))
    exact.load_state_dict(low.state_dict())
    return low, exact


def types_of_products(model, run):
    """The types of what linear layers give."""
    found = set()
    hooks = [
        module.register_forward_hook(lambda _, inputs, output: found.add(output.dtype))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    result = run()
    for hook in hooks:
        hook.remove()
    return found, result


@pytest.mark.parametrize("variant", FAMILY)
def test_training(variant):
    """Losses of float32 near those of float32, and gradients in the type of the weights."""
    low, exact = pair(variant)
    found, losses = types_of_products(low.train(), lambda: seeded(low, batch()))
    assert torch.bfloat16 in found
    for name, loss in seeded(exact.train(), batch()).items():
        assert losses[name].dtype == torch.float32
        if not_ranked(variant, name):
            assert_close(losses[name], loss, rtol=0.03, atol=0.03)
    assert any(not torch.equal(losses[n], x) for n, x in exact(batch()).items())
    sum(losses.values()).backward()
    for parameter in low.parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


@torch.no_grad()
def test_evaluation():
    low, exact = (model.eval() for model in pair("refine"))
    found, results = types_of_products(low, lambda: low(batch()))
    assert torch.bfloat16 in found
    for ours, theirs in zip(results, exact(batch())):
        ours, theirs = ours["instances"], theirs["instances"]
        assert ours.scores.dtype == ours.pred_boxes.tensor.dtype == torch.float32
        assert_close(ours.scores, theirs.scores, rtol=0, atol=0.02)


@torch.no_grad()
def test_a_model_that_asks_for_nothing_leaves_the_caller_s_autocast():
    model = build().eval()
    found, _ = types_of_products(model, lambda: model(batch()))
    assert found == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = types_of_products(model, lambda: model(batch()))
    assert torch.bfloat16 in found


def test_a_processor_without_bfloat16_is_named(monkeypatch, caplog):
    """Where x86 has no AVX-512; not on a GPU, nor where float32 is asked for."""
    said = "SOLVER.AMP.ENABLED: PyTorch has no fast way"
    for has, opts, warns in (
        (False, AMP, True),
        (False, ["SOLVER.AMP.ENABLED", False], False),
        (False, [*AMP, "MODEL.DEVICE", "cuda"], False),
        (True, AMP, False),
    ):
        monkeypatch.setattr(device, "has_bfloat16", lambda has=has: has)
        caplog.clear()
        device.warn_of_slow_precision(small_cfg(*opts))
        assert (said in caplog.text) == warns


def test_bfloat16_of_this_processor():
    """As Linux lists the instructions of an x86 one."""
    if not PROCESSOR:
        pytest.skip("no x86 processor, or no Linux that lists its instructions")
    assert device.has_bfloat16() == ({"avx512bw", "avx512dq", "avx512vl"} <= PROCESSOR)


def test_float16_is_for_gpus():
    cfg = small_cfg(*AMP, "SOLVER.AMP.PRECISION", "float16")
    with pytest.raises(InputError, match="float16.*MODEL.DEVICE is 'cpu'.*bfloat16"):
        check_trainer_config(cfg)
    cfg.MODEL.DEVICE = "cuda"
    check_trainer_config(cfg)


def test_resumed_equals_uninterrupted(shapes, tmp_path):  # noqa: F811
    opts = [*AMP, "SOLVER.CHECKPOINT_PERIOD", 4]
    run(shapes, tmp_path / "whole", opts=opts)
    whole = last_checkpoint(tmp_path / "whole")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000003.pth", tmp_path / "again")
    (tmp_path / "again" / "last_checkpoint").write_text("model_0000003.pth")
    log = run(shapes, tmp_path / "again", "--resume", opts=opts)
    assert "Starting training from iteration 4" in log and "Box AP" in log
    assert_same_run(last_checkpoint(tmp_path / "again"), whole)
