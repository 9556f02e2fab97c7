"""DAT and DAT++ beside the authors' code, and the numbers that they publish."""

import json

import pytest
import torch

from detectron2_ddetr.backbones.dat import DAT_SIZES, DATBackbone, DATClassifier
from detectron2_ddetr.errors import InputError

from .dat_cases import KINDS, golden, probe, relative_error, tiny
from .golden_cases import GOLDEN

#: Parameters of the classifiers, from the authors' code.
PARAMETERS = {
    "DAT-T": 28_319_138, "DAT-S": 49_700_402, "DAT-B": 87_881_632,
    "DAT-T++": 23_962_876, "DAT-S++": 53_127_366, "DAT-B++": 93_690_640,
}  # fmt: skip
#: The paper's table of which stages are deformable: what to change in DAT-T, millions of
#: parameters, GFLOPs.
ABLATION = {
    "1 to 4": (
        dict(stage_spec=["LD", "LD", "LDLDLD", "LD"], strides=[4, 2, 1, 1], groups=[1, 2, 3, 6],
             use_pes=[True] * 4, offset_range_factor=[2] * 4), 28.39, 4.64),
    "2 to 4": (
        dict(stage_spec=["LS", "LD", "LDLDLD", "LD"], strides=[-1, 2, 1, 1],
             groups=[-1, 2, 3, 6], use_pes=[False, True, True, True],
             offset_range_factor=[-1, 2, 2, 2]), 28.34, 4.60),
    "3 and 4": ({}, 28.32, 4.59),
    "4": (dict(stage_spec=["LS", "LS", "LSLSLS", "LD"]), 28.29, 4.51),
    "none, which is Swin-T": (dict(stage_spec=["LS", "LS", "LSLSLS", "LS"]), 28.29, 4.51),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_classifier(kind):
    case, model = golden(kind, "")
    image = case["cls/image"][None]
    assert relative_error(model.eval()(image), case["cls/logits"]) < 1e-4
    for i, x in enumerate(model.stage_maps(image)):
        expected = case[f"cls/stage{i}"]
        x = x.permute(0, 3, 1, 2)[:, :: x.shape[3] // expected.shape[1]]
        assert relative_error(x, expected) < 1e-4


@pytest.mark.parametrize("kind, grid, name", [
    ("v1", None, "det"), ("v1", "end_point", "detcode"), ("pp", None, "det"),
])  # fmt: skip
@torch.no_grad()
def test_backbone_on_one_odd_image(kind, grid, name):
    case, model = golden(kind, "_detection", grid)
    maps = model.eval()(case["det/image_0"][None])
    for i, x in enumerate(maps.values()):
        step, expected = case["config"]["channel_step"][i], case[f"{name}/single/out{i}"]
        assert relative_error(x[:, ::step], expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_backbone_on_a_padded_batch(kind):
    case, model = golden(kind, "_detection")
    batch = torch.zeros(2, 3, 192, 256)
    for x, (h, w), i in zip(batch, case["det/sizes"], range(2)):
        x[:, :h, :w] = case[f"det/image_{i}"]
    for i, x in enumerate(model.eval()(batch).values()):
        step, name = case["config"]["channel_step"][i], f"det/batch/out{i}"
        assert relative_error(x[:, ::step], case[name]) < 1e-4
        assert relative_error(x.square().mean(1).sqrt(), case[f"{name}_rms_channels"]) < 1e-4
        assert relative_error(x.mean((2, 3)), case[f"{name}_mean_space"]) < 1e-4


@pytest.mark.parametrize("block", ["block", "block2"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_where_the_keys_are(kind, block):
    case, model = golden(kind, "_detection")
    stage, index = case["config"][block]
    attention, seen = model.stages[stage].attns[index], []
    attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()(case["det/image_0"][None])
    weights, deformation = attention.weights(seen[0])
    of_queries = weights[0, :, case[f"det/{block}/queries"]]
    assert relative_error(of_queries, case[f"det/{block}/attention"]) < 1e-4
    assert relative_error(deformation.offsets, case[f"det/{block}/offset_raw"]) < 1e-4
    assert relative_error(deformation.positions, case[f"det/{block}/positions"]) < 1e-4
    reference = case[f"det/{block}/reference"]
    assert relative_error(deformation.reference.expand_as(reference), reference) < 1e-6


@pytest.mark.parametrize("net, name", [("", "cls"), ("_detection", "det")])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, net, name):
    case, model = golden(kind, net)
    image = case["cls/image" if net == "" else "det/image_0"][None]
    outputs = model.train()(image)  # no dropout, so as in evaluation
    outputs = list(outputs.values()) if net else [outputs]
    names, parameters = zip(*model.named_parameters())
    seed = case["config"]["seed"]
    for loss, value in (
        ("mean", sum(x.mean() for x in outputs)),
        ("probe", sum((x * probe(seed, i, x)).sum() for i, x in enumerate(outputs))),
    ):
        if net:
            assert value.item() == pytest.approx(case[f"det/loss_{loss}"].item(), rel=1e-3)
        found = dict(zip(names, torch.autograd.grad(value, parameters, retain_graph=True)))
        for key in case["config"]["gradients"]:
            expected = case[f"{name}/grad_{loss}/{key}"]
            steps = (slice(None, None, a // b) for a, b in zip(found[key].shape, expected.shape))
            assert relative_error(found[key][tuple(steps)], expected) < 1e-4
    norms = torch.stack([found[key].norm() for key in case[f"{name}/grad_names"]]).double()
    expected = case[f"{name}/grad_norms"]
    assert set(case[f"{name}/grad_names"]) == set(names)
    torch.testing.assert_close(norms, expected, rtol=1e-3, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        model = DATClassifier(**DAT_SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name, kind", [("DAT-T", "dat_v1"), ("DAT-T++", "dat_pp")])
def test_names_of_the_weights(name, kind):
    """But for the constants, which are made anew."""
    keys = json.loads((GOLDEN / "family" / "dat_checkpoint_keys.json").read_text())[kind]
    with torch.device("meta"):
        classifier = DATClassifier(**DAT_SIZES[name])
        backbones = [DATBackbone(**DAT_SIZES[name], out_indices=i) for i in (range(4), (1, 2, 3))]
    own, others = classifier.state_dict(), [b.state_dict() for b in backbones]
    constants = {k for k in keys["in_classifier_only"] if k.endswith("attn_mask")}
    assert set(own) - set(others[0]) == set(keys["in_classifier_only"]) - constants
    assert set(others[0]) - set(own) == set(keys["in_detection_only"])
    only = keys["in_detection_only_when_out_indices_is_1_2_3"]
    assert set(others[1]) - set(own) == set(only)
    assert len(own) == keys["classifier_tensors"] - len(constants) - len(keys["buffers_both"])
    assert len(others[0]) == keys["detection_tensors"] - len(keys["buffers_both"])
    assert sum(p.numel() for p in backbones[0].parameters()) == keys["detection_parameters"]


@pytest.mark.parametrize("row", ABLATION)
def test_costs_of_deformable_stages(row):
    """As in the paper; fvcore takes a multiplication and an addition for one."""
    from fvcore.nn import FlopCountAnalysis

    changes, millions, gflops = ABLATION[row]
    model = DATClassifier(**{**DAT_SIZES["DAT-T"], **changes}).eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    counter = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
    counter.unsupported_ops_warnings(False)
    assert counter.total() / 1e9 == pytest.approx(gflops, rel=0.01)


def test_stages_of_the_pyramid():
    """A quarter of the image, then half as many cells with twice the channels."""
    with torch.device("meta"):
        model = DATClassifier(**DAT_SIZES["DAT-T"])
        maps = model.stage_maps(torch.zeros(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768)
    ]  # fmt: skip


@torch.no_grad()
def test_classifier_ends_in_norm_mean_and_linear_layer():
    model = tiny(DATClassifier, num_classes=5).eval()
    image = torch.rand(2, 3, 64, 96)
    x = model.stage_maps(image)[-1]
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    head = model.cls_head
    expected = torch.einsum("nhwc,kc->nk", normed, head.weight) / (2 * 3) + head.bias
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"stage_spec": ["LS", "NX", "DL", "D"]}, "L, S, D or N, got 'X'"),
        ({"stage_spec": ["LS", "ND", "D", "D"]}, "must have .2, 2, 2, 1. letters"),
        ({"no_offs": [True] * 4}, "no_offs .True.*nor is it here"),
        ({"kernel_sizes": [1] * 4}, "kernel_sizes is no argument"),
        ({"out_indices": [4]}, "out_indices are of 0 to 3"),
        ({"freeze_at": 6}, "freeze_at is from 0 to 5"),
    ],
)
def test_what_is_no_dat(options, says):
    with pytest.raises(InputError, match=says):
        tiny(**options)
