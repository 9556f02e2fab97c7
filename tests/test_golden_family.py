"""Parity with the authors' codes of H-DETR, DAB-, DN-Deformable-DETR and DINO."""

import copy
import json

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr import build_optimizer
from detectron2_ddetr.modeling import (
    Denoising,
    Draws,
    PositionEmbeddingSine,
    attention_mask,
    box_position_encoding,
    inverse_sigmoid,
    sigmoid_topk,
)
from detectron2_ddetr.modeling.memory import Memory, cell_centres, to_levels, valid_ratio
from detectron2_ddetr.modeling.query_groups import QueryGroup
from detectron2_ddetr.modeling.two_stage import proposals

from . import family_cases as family
from . import golden_cases as golden
from .golden_cases import seeded_parameter

close = dict(rtol=0, atol=1e-4)


class Run:
    """A model with the weights of a case, and what happens in it."""

    def __init__(self, system, name=None):
        self.system, self.case = system, family.load(name or f"model_{system}")
        self.model = family.model(system, self.case)
        self.images = family.images(self.case)
        self.targets = golden.targets(self.case)
        self.denoising = self.model.head.denoising
        if self.denoising is not None and "rand_0" in self.case:
            self.denoising.draws = family.recorded(self.case)
        self.model.head.transformer.decoder.register_forward_hook(self._decoder)

    def _decoder(self, module, args, out):
        self.queries = args[0]
        self.hs, self.boxes, self.references = out

    def evaluate(self):
        with torch.no_grad():
            self.outputs = self.model.eval().network_outputs(self.images)
        return self

    def train(self, targets=None):
        targets = self.targets if targets is None else targets
        self.outputs = self.model.train().network_outputs(self.images, targets)
        self.losses = self.model.criterion(self.outputs, targets)
        return self


@pytest.fixture(scope="module", params=list(family.SYSTEMS))
def built(request):
    return Run(request.param)


@pytest.fixture(scope="module")
def evaluated(built):
    return copy.copy(built.evaluate())


@pytest.fixture(scope="module")
def trained(built, evaluated):
    return copy.copy(built.train())


def check_outputs(case, outputs):
    assert_close(outputs["pred_logits"], case["pred_logits"], **close)
    assert_close(outputs["pred_boxes"], case["pred_boxes"], **close)
    for i, aux in enumerate(outputs["aux_outputs"]):
        assert_close(aux["pred_boxes"], case[f"aux_pred_boxes_{i}"], **close)
        if f"aux_pred_logits_mean_{i}" in case:
            mean = aux["pred_logits"].mean(-1)
            assert_close(mean, case[f"aux_pred_logits_mean_{i}"], **close)


def check_references(run):
    for i, reference in enumerate(run.references):
        expected = run.case[f"reference_{i}"]
        assert_close(reference, expected.expand_as(reference), **close)


def test_outputs(evaluated):
    """Logits and boxes of all layers, and states of the decoder as the heads read them."""
    case = evaluated.case
    check_outputs(case, evaluated.outputs)
    for i, hs in enumerate(evaluated.hs):
        mean = case["hs_mean"][i] if "hs_mean" in case else case[f"hs_mean_{i}"]
        assert_close(hs.mean(-1), mean, **close)


def test_references(evaluated):
    """What each layer looks around; in DINO not the boxes of the layer before."""
    check_references(evaluated)
    unlike = (evaluated.references[1] - evaluated.boxes[0]).abs().max() > 1e-3
    assert unlike == (evaluated.system == "dino")


def test_selection(evaluated):
    """Which tokens become queries, in their order, and what the encoder says of them."""
    case, outputs = evaluated.case, evaluated.outputs
    if "topk_index" not in case:
        assert evaluated.queries.selected is None
        return
    assert torch.equal(evaluated.queries.selected, case["topk_index"])
    if evaluated.system == "dino":
        interm = outputs["interm_outputs"]
        assert_close(interm["pred_logits"], case["interm_pred_logits"], **close)
        assert_close(interm["pred_boxes"], case["interm_pred_boxes"], **close)
    else:
        encoder = outputs["enc_outputs"]
        assert_close(encoder["pred_boxes"], case["enc_pred_boxes"], **close)
        assert_close(encoder["pred_logits"][..., 0], case["enc_class0"], **close)


def test_detections(evaluated):
    """Scores, and labels and boxes where neighbouring scores differ."""
    case, outputs = evaluated.case, evaluated.outputs
    count = evaluated.model.num_detections
    assert count == (300 if evaluated.system == "dino" else 100)
    detections = sigmoid_topk(outputs["pred_logits"], outputs["pred_boxes"], count)
    for i, (scores, labels, boxes) in enumerate(zip(*detections)):
        height, width = case["target_sizes"][i].tolist()
        expected = case[f"post_scores_{i}"]
        assert_close(scores, expected, rtol=0, atol=1e-5)
        apart = torch.diff(expected).abs() > 1e-5
        clear = torch.cat((torch.tensor([True]), apart)) & torch.cat((apart, torch.tensor([False])))
        assert clear.sum() > 20
        assert torch.equal(labels[clear], case[f"post_labels_{i}"][clear])
        found = (boxes * torch.tensor([width, height, width, height]))[clear]
        assert_close(found, case[f"post_boxes_{i}"][clear], rtol=1e-4, atol=0.1)


def test_losses(trained):
    """Each loss of each layer and group, with the authors' noise."""
    case = trained.case
    weights = {k: w for k, w in case["weight_dict"].items() if f"loss/{k}" in case}
    expected = {family.loss_name(k): w * case[f"loss/{k}"] for k, w in weights.items()}
    assert set(trained.losses) == set(expected)
    for name, value in expected.items():
        found = trained.losses[name].item()
        assert found == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    assert_close(sum(trained.losses.values()), case["total_loss"].float(), rtol=1e-4, atol=0)


def test_assignment(trained):
    """Hungarian assignments of each layer, of the encoder and of one-to-many queries."""
    case, outputs = trained.case, trained.outputs
    tasks = trained.model.criterion.tasks(outputs, trained.targets)
    names = {"": "match", "_enc": "match_interm" if trained.system == "dino" else "match_enc"}
    names |= {"_one2many": "match_o2m"}
    for i in range(len(outputs["aux_outputs"])):
        names |= {f"_{i}": f"match_aux{i}", f"_one2many_{i}": f"match_o2m_aux{i}"}
    compared = 0
    for task, indices in zip(tasks, trained.model.criterion.indices(tasks)):
        if f"{(name := names.get(task.suffix))}_query_0" not in case:
            continue
        for i, (query_idx, target_idx) in enumerate(indices):
            assert torch.equal(query_idx, case[f"{name}_query_{i}"])
            count = len(trained.targets[i]["labels"])  # copies of a target are the same
            assert torch.equal(target_idx, case[f"{name}_target_{i}"] % count)
            compared += 1
    assert compared >= 4


def test_gradients(trained):
    """Of every parameter, of all losses and of those of boxes: these see a wrong detach."""
    case, losses = trained.case, trained.losses
    of_boxes = sum(loss for name, loss in losses.items() if "bbox" in name or "giou" in name)
    assert_close(of_boxes, case["total_box_loss"].float(), rtol=1e-4, atol=0)
    parameters = dict(trained.model.named_parameters(remove_duplicate=False))
    names = family.names_here(trained.system)
    for total, key in ((of_boxes, "grad_norms_box"), (sum(losses.values()), "grad_norms")):
        trained.model.zero_grad()
        total.backward(retain_graph=True)
        floor = 1e-5 * case[key].square().sum().sqrt().item()
        for name, norm in zip(case["grad_names"], case[key]):
            grad = parameters[names[name]].grad
            found = 0.0 if grad is None else grad.norm().item()
            assert found == pytest.approx(norm.item(), rel=2e-3, abs=floor), name


def test_queries_that_only_train(trained):
    """Who sees whom; what further queries start from, with the authors' noise, and come to."""
    case, queries, groups = trained.case, trained.queries, trained.outputs.get("train_groups", [])
    if trained.system == "hdetr":
        assert torch.equal(queries.attn_mask, case["train/self_attn_mask"].bool())
        assert torch.equal(queries.selected, case["train/topk_index"])
        (_, many), = groups  # fmt: skip
        assert_close(many["pred_logits"], case["train/pred_logits_one2many"], **close)
        assert_close(many["pred_boxes"], case["train/pred_boxes_one2many"], **close)
        for i, aux in enumerate(many["aux_outputs"]):
            assert_close(aux["pred_boxes"], case[f"train/aux_pred_boxes_one2many_{i}"], **close)
    elif trained.denoising is not None:
        (group, noised), = groups  # fmt: skip
        assert group.size == case["dn/meta"]["pad_size"]
        assert torch.equal(queries.attn_mask, case["dn/attn_mask"])
        expected = case["dn/query_boxes_logit"]
        references = queries.reference_points[:, : expected.shape[1]]
        assert_close(references, expected.sigmoid(), rtol=0, atol=1e-6)
        total = case["dn/query_content_sum"]
        content = queries.content[:, : total.shape[1]]
        assert_close(content.sum(-1), total, rtol=0, atol=1e-4)
        ends = torch.cat((content[..., :4], content[..., -4:]), dim=-1)
        assert_close(ends, case["dn/query_content_ends"], rtol=0, atol=1e-5)
        assert_close(noised["pred_boxes"], case["dn/pred_boxes"], **close)
        assert_close(noised["pred_logits"].mean(-1), case["dn/pred_logits_mean"], **close)
    else:
        assert not groups and queries.attn_mask is None


def test_queries_that_only_train_do_not_leak(evaluated, trained):
    """The queries that detect give in training what they give in evaluation."""
    for key in ("pred_logits", "pred_boxes"):
        assert_close(trained.outputs[key], evaluated.outputs[key], rtol=0, atol=1e-5)


def test_batch_without_boxes(built, trained):
    """Losses are those of the authors' code, and every parameter gets a gradient."""
    expected = json.loads((family.FAMILY / "empty_batch.json").read_text())[built.system]
    targets = [{key: x[:0] for key, x in target.items()} for target in built.targets]
    draws = built.denoising and built.denoising.draws
    if built.denoising is not None:
        built.denoising.draws = Draws()
    built.model.zero_grad()
    losses = built.train(targets).losses
    weights, compared = built.case["weight_dict"], 0
    for name, value in expected["losses"].items():
        if name in weights:
            found = losses[family.loss_name(name)].item()
            assert found == pytest.approx(weights[name] * value, rel=1e-4, abs=1e-5), name
            compared += 1
    assert compared == len(losses)
    sum(losses.values()).backward()
    for name, parameter in built.model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
    if draws is not None:
        built.denoising.draws = draws


def test_trajectory(built, trained):
    """Three steps of the optimiser of the shipped config, with the same noise in each."""
    optimizer = build_optimizer(family.config(built.system, built.case), built.model)
    parameters = [p for p in built.model.parameters() if p.requires_grad]
    for loss_before, norm_before in zip(built.case["train_losses"], built.case["train_grad_norms"]):
        loss = sum(built.train().losses.values())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        optimizer.step()
        assert_close(loss.double(), loss_before.double(), rtol=1e-3, atol=0)
        assert_close(norm.double(), norm_before.double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("system", ["ddetr_tricks", "dino", "dab_deformable", "dn_dab_deformable"])
def test_edges(system):
    """References near 0 and 1, where the eps of the inverse sigmoid counts, and padded tokens."""
    run = Run(system, f"edge_{system}").evaluate()
    check_outputs(run.case, run.outputs)
    check_references(run)


@pytest.mark.parametrize("kind", ["dino", "dn"])
def test_noise_builder(kind):
    """The denoising queries alone: content, boxes and mask of odd batches."""
    cases = family.load(f"dn_cases_{kind}")
    for name in cases["cases"]:
        case = {k.removeprefix(f"{name}/"): v for k, v in cases.items() if k.startswith(f"{name}/")}
        config = case["config"]
        number, dino = config["number"], kind == "dino"
        # The authors' code takes a number below 50 for half the number of groups.
        groups = (2 * number if number < 50 else None) if dino else number
        denoising = Denoising(
            config["num_classes"],
            config["hidden"],
            num_queries=number,
            num_groups=groups,
            label_noise=config["label_noise"] * (0.5 if dino else 1),
            box_noise=config["box_noise"],
            negatives=dino,
            corner_noise=dino,
            indicator=not dino,
            draws=family.recorded(case),
        )
        shape = tuple(denoising.label_enc.weight.shape)
        assert shape == (config["label_enc_rows"], config["hidden"] - (not dino))
        weight = seeded_parameter("label_enc.weight", shape, config["seed"])
        denoising.label_enc.weight.data.copy_(torch.from_numpy(weight))
        content, references, group = denoising(golden.targets(case))
        size = config["pad_size"]
        assert group.size == size, name
        assert_close(content, case["query_content"][:, :size], rtol=0, atol=1e-6, msg=name)
        expected = case["query_boxes_logit"][:, :size].sigmoid()
        assert_close(references, expected, rtol=0, atol=1e-6, msg=name)
        mask = attention_mask([group, QueryGroup(config["num_queries"])])
        assert torch.equal(mask, case["attn_mask"].bool()), name


def test_functions():
    """Small functions on small inputs, where an axis or a constant can be mistaken unseen."""
    case = family.load("functions")
    for eps in ("1e-3", "1e-5"):
        found = inverse_sigmoid(case["x"], float(eps))
        assert_close(found, case[f"inverse_sigmoid_{eps}"], rtol=0, atol=2e-6)
    order = [1, 0, 2, 3]  # the box code of DAB begins with y
    code = box_position_encoding(case["boxes"][..., order])
    assert_close(code, case["box_code_4"], rtol=0, atol=2e-6)
    assert_close(code[..., :256], case["box_code_2"], rtol=0, atol=2e-6)
    code = box_position_encoding(case["proposal_code_in"].sigmoid())
    assert_close(code, case["proposal_code"], rtol=0, atol=2e-6)
    shapes = [tuple(shape) for shape in case["spatial_shapes"].tolist()]
    masks = [case[f"mask_{i}"].bool() for i in range(4)]
    for i, mask in enumerate(masks):
        assert tuple(mask.shape[1:]) == shapes[i]
        found = PositionEmbeddingSine(8, temperature=20.0, offset=0.0)(mask)
        assert_close(found, case[f"position_T20_{i}"], rtol=0, atol=2e-6)
        valid = ~mask[:, None].expand_as(found)
        found = PositionEmbeddingSine(8)(mask)
        assert_close(found[valid], case[f"position_offset_T10000_{i}"][valid], rtol=0, atol=2e-6)
    ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
    assert_close(ratios, case["valid_ratios"], rtol=0, atol=2e-6)
    found = to_levels(cell_centres(shapes, ratios), ratios)
    assert_close(found, case["encoder_reference"], rtol=0, atol=2e-6)
    memory = Memory(case["memory"], case["padding_mask"].bool(), shapes, ratios)
    logits, usable = proposals(memory)
    assert_close(logits, case["proposal_logits"], rtol=0, atol=2e-6)
    assert torch.equal(memory.tokens * usable[..., None], case["proposal_memory"])
