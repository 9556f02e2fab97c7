"""Outputs of the authors' own code, reproduced through the public path."""

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import build_optimizer, convert_official_state_dict
from detectron2_ddetr.modeling import HungarianMatcher, SetCriterion, ms_deform_attn, sigmoid_topk
from detectron2_ddetr.toolbox import ImageList, build_model

from . import golden_cases as golden
from .conftest import VARIANTS


@pytest.mark.parametrize("case_id", range(4))
def test_operator(case_id):
    """Parity D18, D19: outputs and all three gradients."""
    case = golden.load(f"op_{case_id}")
    names = ("value", "sampling_locations", "attention_weights")
    inputs = {name: case[name].requires_grad_() for name in names}
    output = ms_deform_attn(spatial_shapes=case["spatial_shapes"], **inputs)
    output.backward(case["grad_output"])
    exact = output.dtype == torch.float64
    tolerance = {"rtol": 0, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-4}
    assert_close(output, case["output"], **tolerance)
    for name in names:
        assert_close(inputs[name].grad, case[f"grad_{name}"], **tolerance)


@pytest.mark.parametrize("case_id", range(4))
def test_criterion(case_id):
    """Parity I62-I71: losses, assignment and gradients; images without boxes."""
    case = golden.load(f"criterion_{case_id}")
    outputs = {name: case[name].requires_grad_() for name in ("pred_logits", "pred_boxes")}
    targets = golden.targets(case)
    criterion = SetCriterion(HungarianMatcher())
    losses = criterion(outputs, targets)
    weights = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    assert set(losses) == set(weights)
    for name, weight in weights.items():
        assert_close(losses[name], weight * case[f"loss/{name}"], rtol=1e-4, atol=1e-6)
    assert_close(criterion.diagnostics["class_error"], case["loss/class_error"])
    for i, (query_idx, target_idx) in enumerate(criterion.matcher(outputs, targets)):
        assert_close(query_idx, case[f"match_query_{i}"])
        assert_close(target_idx, case[f"match_target_{i}"])
    sum(losses.values()).backward()
    assert_close(outputs["pred_logits"].grad, case["grad_logits"], rtol=1e-4, atol=1e-6)
    assert_close(outputs["pred_boxes"].grad, case["grad_boxes"], rtol=1e-4, atol=1e-6)


def load_variant(variant):
    case = golden.load(f"model_{variant}")
    cfg = golden.config(variant, case)
    model = build_model(cfg)
    official = golden.official_state_dict(variant, case["config"]["seed"])
    model.load_state_dict(convert_official_state_dict(official), strict=True)
    images = ImageList.from_tensors([case["image_0"], case["image_1"]])
    return case, cfg, model, images


@pytest.fixture(scope="module", params=list(VARIANTS))
def loaded(request):
    case, _, model, images = load_variant(request.param)
    with torch.no_grad():
        return case, model, model.eval().network_outputs(images)


def test_model_outputs(loaded):
    """Parity H56: logits and boxes of all layers, padded batch of two sizes."""
    case, _, outputs = loaded
    assert_close(outputs["pred_logits"], case["pred_logits"], rtol=0, atol=1e-4)
    assert_close(outputs["pred_boxes"], case["pred_boxes"], rtol=0, atol=1e-4)
    for i, aux in enumerate(outputs["aux_outputs"]):
        assert_close(aux["pred_boxes"], case[f"aux_pred_boxes_{i}"], rtol=0, atol=1e-4)
    assert ("enc_outputs" in outputs) == ("enc_pred_logits_mean" in case)
    if "enc_outputs" in outputs:
        mean = outputs["enc_outputs"]["pred_logits"].mean((0, 1))
        assert_close(mean, case["enc_pred_logits_mean"], rtol=0, atol=1e-4)


def test_model_losses(loaded):
    """Parity I68, I71: every weighted loss of every layer, and the assignment of the last."""
    case, model, outputs = loaded
    targets = golden.targets(case)
    losses = model.criterion(outputs, targets)
    weights = {k: w for k, w in case["weight_dict"].items() if f"loss/{k}" in case}
    assert set(losses) == set(weights)
    for name, weight in weights.items():
        assert_close(losses[name], weight * case[f"loss/{name}"], rtol=1e-4, atol=1e-5)
    for i, (query_idx, target_idx) in enumerate(model.criterion.matcher(outputs, targets)):
        assert_close(query_idx, case[f"match_query_{i}"])
        assert_close(target_idx, case[f"match_target_{i}"])


def test_model_detections(loaded):
    """Parity J74, J75: scores, labels and unclipped boxes for other target sizes."""
    case, _, outputs = loaded
    selected = sigmoid_topk(outputs["pred_logits"], outputs["pred_boxes"], 100)
    for i, (scores, labels, boxes) in enumerate(zip(*selected)):
        height, width = case["sizes"][i].tolist()
        assert_close(scores, case[f"post_scores_{i}"], rtol=0, atol=1e-4)
        same = labels == case[f"post_labels_{i}"]
        assert same.float().mean() > 0.97  # ties of equal scores may be ordered otherwise
        size = torch.tensor([2 * width, 3 * height, 2 * width, 3 * height])
        assert_close((boxes * size)[same], case[f"post_boxes_{i}"][same], rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_training_trajectory(variant):
    """Parity K83-K85: losses and gradient norms over optimiser steps."""
    case, cfg, model, images = load_variant(variant)
    model.train()
    optimizer = build_optimizer(cfg, model)
    targets = golden.targets(case)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for loss_before, norm_before in zip(case["train_losses"], case["train_grad_norms"]):
        loss = sum(model.criterion(model.network_outputs(images), targets).values())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        optimizer.step()
        assert_close(loss.double(), loss_before, rtol=1e-3, atol=0)
        assert_close(norm.double(), norm_before, rtol=1e-3, atol=0)
    clipped = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    assert clipped <= 0.1 * (1 + 1e-4)
