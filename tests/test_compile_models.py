"""Whole models under `torch.compile` and `torch.export`, and without the operator."""

import functools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.meta_arch import padding_mask
from detectron2_ddetr.modeling import GRID_SAMPLE_DECOMPOSITIONS
from detectron2_ddetr.toolbox import build_model

from .conftest import FAMILY, VARIANTS, small_cfg
from .modeling_cases import randomise
from .test_deform_attn_compile import DYNAMIC, fresh_compiler, operators  # noqa: F401
from .test_meta_arch import NODE, TINY_BACKBONE, sample

#: px, of images from 60 x 60 on.
BOXES = [(3.0, 5.0, 40.0, 30.0), (20.0, 10.0, 50.0, 55.0), (0.0, 30.0, 25.0, 58.0),
         (10.0, 10.0, 35.0, 45.0)]  # fmt: skip


class Outputs(nn.Module):
    """Logits and boxes of a head that gets features, or of a whole model that gets images."""

    def __init__(self, head, backbone=None, in_features=()):
        super().__init__()
        self.head, self.backbone, self.in_features = head, backbone, in_features

    def forward(self, images, mask):
        features = images
        if self.backbone is not None:
            maps = self.backbone(images)
            features = [maps[name] for name in self.in_features]
        out = self.head(features, mask)
        return out["pred_logits"], out["pred_boxes"]


def image_batch(*sizes):
    """(N, 3, H, W), and (N, H, W), True = padding."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        mask[i, :h, :w] = False
    return torch.randn(len(sizes), 3, height, width, generator=generator), mask


@pytest.mark.parametrize("training", [False, True])
def test_compiled_model(training):
    """
    From the batch of images to the predictions of all layers, as training calls it, forward and
    backward, without a break; in training the same numbers are dropped.
    """
    dropout = ["MODEL.DETR.DROPOUT", 0.2]
    cfg = small_cfg(*TINY_BACKBONE, 2, *dropout, config=FAMILY["two_stage"])
    model = build_model(cfg).train(training)
    randomise(model.head, std=0.1)
    images = [{"image": 255 * torch.rand(3, h, w)} for h, w in ((72, 104), (61, 83))]
    images = model.preprocess_image(images)
    results = []
    network_outputs = torch.compile(model.network_outputs, fullgraph=True, backend="aot_eager")
    for call in (model.network_outputs, network_outputs):
        model.zero_grad()
        torch.manual_seed(5)
        out = call(images)
        layers = [out, *out["aux_outputs"], *filter(None, [out.get("enc_outputs")])]
        predictions = [layer[key] for layer in layers for key in ("pred_logits", "pred_boxes")]
        sum(x.square().sum() for x in predictions).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append(predictions + gradients)
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


#: Of images, and how many boxes they have.
BATCH_SIZES = [(((72, 104), (61, 83)), (2, 4)), (((96, 80), (90, 80)), (3, 2))]


@pytest.mark.parametrize("system", ["h", "dino", "detr"])
def test_compiled_training(system, monkeypatch):
    """
    As the README shows it, backbone and head for all sizes: losses and gradients of two batches, of
    other sizes and numbers of boxes. Denoising, whose draws are the same, makes another program.
    """
    if system == "dino":
        monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", False)
    levels = 1 if system == "detr" else 2
    opts = [NODE + "ENC_LAYERS", 1, NODE + "DEC_LAYERS", 2, NODE + "DROPOUT", 0.0]
    model = build_model(small_cfg(*TINY_BACKBONE, levels, *opts, config=FAMILY[system])).train()
    model.load_state_dict(model.state_dict(), strict=False)  # frozen layers count as loaded
    results = []
    for compiled in (False, True):
        if compiled:
            for module in (model.backbone, model.head):
                module.compile(dynamic=True, backend="eager")
        for sizes, counts in BATCH_SIZES:
            torch.manual_seed(1)
            model.zero_grad()
            losses = model([sample(*size, BOXES[:count]) for count, size in zip(counts, sizes)])
            sum(losses.values()).backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            results.append({**losses, **gradients})
    for a, b in zip(results[:2], results[2:]):
        assert a.keys() == b.keys() and a
        for name in a:
            assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@functools.cache
def exported(variant):
    """
    A model, and its program of images and padding.

    Most have a backbone of two convolutions, since a ResNet takes as long as all the rest. Not so
    DETR: where the sizes of its map are quotients, PyTorch's reshape guards against a batch of one.
    """
    layers = ["MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2]
    if variant not in ("single_scale_dc5", "detr"):
        layers += [*TINY_BACKBONE, 1 if variant == "single_scale" else 2]
    model = build_model(small_cfg(*layers, config=FAMILY[variant])).eval()
    randomise(model.head, std=0.1)
    whole = Outputs(model.head, model.backbone, model.in_features)
    dynamic = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}, {0: DYNAMIC, 1: DYNAMIC, 2: DYNAMIC})
    batch = image_batch((72, 104), (61, 83))
    return whole, torch.export.export(whole, batch, dynamic_shapes=dynamic)


@functools.cache
def exported_without_operator(variant):
    """A model, and its program for those who do not have the operator."""
    whole, program = exported(variant)
    return whole, program.run_decompositions(GRID_SAMPLE_DECOMPOSITIONS)


#: Batches other than that of the example, of half as many images, half as many more, twice as many:
#: what looks like a product with the size of the example is one of these.
BATCHES = [[(200, 151)], [(90, 130), (100, 70), (88, 77)], [(70, 66)] * 4]


#: Of which a program without the operator is made as well, which takes longer than the first; of
#: others where ONNX is installed.
WITHOUT_OPERATOR = "single_scale"


def check_batches(whole, program):
    run = program.module()
    for sizes in BATCHES:
        batch = image_batch(*sizes)
        for a, b in zip(run(*batch), whole(*batch)):
            assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", [*VARIANTS, "h", "dn", "dino", "detr"])
def test_exported_model(variant):
    """One program for any batch and image size, and of some one without the operator."""
    whole, program = exported(variant)
    # One per layer of encoder and decoder.
    assert len(operators(program)) == (0 if variant == "detr" else 3)
    check_batches(whole, program)
    if variant == WITHOUT_OPERATOR:
        whole, program = exported_without_operator(variant)
        assert operators(program) == []
        check_batches(whole, program)


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage", "dino"])
def test_onnx(variant, tmp_path):
    """The program without the operator runs where PyTorch is not, on any batch and image size."""
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="nothing here runs an ONNX file")
    whole, decomposed = exported_without_operator(variant)
    program = torch.onnx.export(decomposed, dynamo=True, verbose=False, optimize=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [x.name for x in session.get_inputs()]
    for sizes in (*BATCHES, [(33, 40)] * 2):
        batch = image_batch(*sizes)
        got = session.run(None, {name: x.numpy() for name, x in zip(names, batch)})
        for a, b in zip(got, whole(*batch)):
            assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


def test_padding_mask_of_a_batch():
    """The mask of `image_batch` is the one that the model makes."""
    model = build_model(small_cfg()).eval()
    images = [{"image": torch.rand(3, h, w)} for h, w in ((32, 50), (40, 20))]
    assert torch.equal(
        padding_mask(model.preprocess_image(images)), image_batch((32, 50), (40, 20))[1]
    )
