"""The form of a model that only detects: the same numbers, and not what training needs."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2_ddetr.config_rules import check_trainer_config
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.inference_form import Int8Linear
from detectron2_ddetr.modeling.linear import Linear
from detectron2_ddetr.toolbox import TOOLBOX, build_model

from .conftest import FAMILY, PROCESSOR, VARIANTS, small_cfg
from .test_meta_arch import build, image, sample

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN"
)
AMP = ["SOLVER.AMP.ENABLED", True]
DEFORMABLE = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]]
BATCH_NORM = ["MODEL.RESNETS.NORM", "BN"]


def trained_norms(model):
    """As a training leaves them: norms that begin as the identity hide errors."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            for name, low, high in (
                ("running_var", 0.5, 2.0), ("weight", 0.5, 1.5),
                ("running_mean", -0.5, 0.5), ("bias", -0.5, 0.5),
            ):  # fmt: skip
                x = getattr(module, name).data
                x.copy_(low + (high - low) * torch.rand(x.shape, generator=generator))
    return model.eval()


def raw(model, images):
    with torch.no_grad():
        return model.network_outputs(model.preprocess_image(images))


def batch():
    """Two images, of which one is padded."""
    return [{"image": image(97, 131)}, {"image": image(60, 90, seed=1)}]


class Operators(TorchDispatchMode):
    """Counts what is called, by name; `casts` are those of parameters."""

    def __init__(self, model):
        super().__init__()
        self.names, self.casts = [], 0
        self.parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removesuffix(".default")
        self.names.append(name)
        if name == "aten._to_copy":
            self.casts += args[0].data_ptr() in self.parameters
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", FAMILY)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_same_numbers(variant, dtype, tolerance):
    """All layers' outputs and, of the tokens that become queries, the encoder's."""
    model = trained_norms(build(config=FAMILY[variant])).to(dtype)
    expected, found = raw(model, batch()), raw(model.for_inference(), batch())
    if (proposals := expected.pop("enc_outputs", None)) is not None:
        logits = proposals["pred_logits"]
        best = logits[:, :, 0].topk(found["interm_outputs"]["pred_logits"].shape[1]).indices
        images = torch.arange(len(best))[:, None]
        expected["interm_outputs"] = {key: x[images, best] for key, x in proposals.items()}
        assert best.shape[1] < logits.shape[1]
    assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("opts", [BATCH_NORM, DEFORMABLE, [*BATCH_NORM, *DEFORMABLE]])
def test_other_norms_and_convolutions(opts):
    model = trained_norms(build(*opts))
    form = model.for_inference()
    assert_close(raw(form, batch()), raw(model, batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="needs detectron2, which has GroupNorm")
def test_a_norm_that_depends_on_the_image_stays():
    widths = ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")
    sizes = [x for width in widths for x in (f"MODEL.RESNETS.{width}", 32)]
    model = trained_norms(build("MODEL.RESNETS.NORM", "GN", *sizes))
    assert_close(raw(model.for_inference(), batch()), raw(model, batch()), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_less_is_computed():
    model = trained_norms(build())
    for run, slow in ((model, True), (model.for_inference(), False)):
        with Operators(run) as operators:
            raw(run, batch())
        assert any("batch_norm" in name for name in operators.names) == slow
        assert ("mkldnn._convolution_pointwise_.binary" not in operators.names) == slow


@needs_onednn
def test_linear_layers_of_other_backbones():
    model = build()
    model.backbone.add_module("of_timm", nn.Linear(3, 2))
    form = model.for_inference()
    assert type(form.backbone.of_timm) is Linear and type(model.backbone.of_timm) is nn.Linear


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [18, 50])
def test_blocks_of_resnets(depth, dtype):
    """
    All of them, of maps down to a cell, in either order of memory; a map that is also an output,
    or that is given, is not overwritten.
    """
    opts = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.OUT_FEATURES", ["stem", "res2", "res5"]]
    opts += ["MODEL.DETR.IN_FEATURES", ["res5"], "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    opts += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "SOLVER.AMP.ENABLED", dtype == torch.bfloat16]
    model = trained_norms(build(*opts, config=VARIANTS["single_scale"]))
    form = model.for_inference()
    kinds = [type(x).__name__ for x in form.backbone.modules()]
    assert sum(k.startswith("OneDNN") for k in kinds) == {18: 8, 50: 16}[depth]
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for size in ((1, 3, 1, 1), (2, 3, 33, 70), (1, 3, 32, 1)):
        for order in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(size).to(memory_format=order)
            given = x.clone()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
                maps = [run.backbone(x) for run in (form, model)]
            assert torch.equal(x, given)
            for name, expected in maps[1].items():
                scale = expected.float().abs().max().item()
                found = maps[0][name].to(expected.dtype)
                assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_no_copies_of_what_is_overwritten(mode):
    """ReLU of feed-forward networks, and values in the padding: in place, also in training."""
    model = build()
    model.train(mode == "training")
    features = model.backbone(model.preprocess_image(batch()).tensor)
    maps = model.head.input_proj([features[name] for name in model.in_features])
    masks = [torch.zeros(2, *m.shape[2:], dtype=torch.bool) for m in maps]
    with Operators(model) as operators:
        model.head.transformer.encode(maps, masks, [torch.zeros_like(m) for m in maps])
    layers = len(model.head.transformer.encoder.layers)
    for name in ("aten.relu", "aten.masked_fill.Scalar"):
        assert name not in operators.names
    for name in ("aten.relu_", "aten.masked_fill_.Scalar"):
        assert operators.names.count(name) == layers


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_precision(variant):
    """What autocast gives, without a cast of weights; boxes stay float32."""
    model = trained_norms(build(*AMP, config=VARIANTS[variant]))
    form = model.for_inference()
    expected = raw(model, batch())
    with Operators(form) as operators:
        found = raw(form, batch())
    assert operators.casts == 0
    assert found["pred_boxes"].dtype == torch.float32
    if variant != "two_stage":  # whose queries are ranked by what is rounded
        assert_close(found["pred_boxes"], expected["pred_boxes"], rtol=0, atol=0.03)
        assert_close(found["pred_logits"], expected["pred_logits"], rtol=0.05, atol=0.1)


def test_no_layer_of_the_encoder_casts_tokens():
    """With mixed precision positions have the type of the tokens once and for all."""
    model = trained_norms(build(*AMP)).for_inference()
    tokens = []
    for layer in model.head.transformer.encoder.layers:
        layer.register_forward_pre_hook(lambda _, args: tokens.append((args[0], args[1])))
        layer.self_attn.register_forward_pre_hook(lambda _, args: tokens.append((args[0], args[2])))
    raw(model, batch())
    assert tokens and all(x.dtype == torch.bfloat16 for pair in tokens for x in pair)


def test_the_model_is_left_as_it_is_and_trains_on():
    model = trained_norms(build("SOLVER.AMP.ENABLED", True))
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    form = model.for_inference()
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert not any(parameter.requires_grad for parameter in form.parameters())
    kept = raw(form, batch())
    sum(model.train()([sample(97, 131)]).values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert_close(raw(form, batch()), kept, rtol=0, atol=0)


def test_it_takes_no_training_and_no_weights():
    model = build()
    form = model.for_inference()
    assert form.eval() is form
    with pytest.raises(InputError, match="cannot be trained: .* for_inference"):
        form.train()
    with pytest.raises(InputError, match="takes no weights: .* for_inference"):
        form.load_state_dict(model.state_dict())


def test_gradients_of_pixels():
    """What is asked for by pictures of them."""
    model = trained_norms(build())
    pixels = torch.rand(1, 3, 64, 96)
    gradients = []
    for run in (model, model.for_inference()):
        x = pixels.clone().requires_grad_()
        features = run.backbone(x)
        mask = torch.zeros(1, 64, 96, dtype=torch.bool)
        outputs = run.head([features[name] for name in run.in_features], mask)
        outputs["pred_logits"].sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_an_autocast_of_the_caller_holds():
    model = trained_norms(build())
    with torch.autocast("cpu", torch.bfloat16):
        found = [raw(run, batch())["pred_logits"] for run in (model, model.for_inference())]
    assert found[0].dtype == found[1].dtype == torch.bfloat16


def test_tracing():
    """A program has no operator that only this PyTorch knows."""
    model = trained_norms(build(config=FAMILY["refine"]))
    form = model.for_inference()
    linear = next(m for m in form.modules() if isinstance(m, nn.Linear))
    x = torch.rand(3, linear.in_features)
    program = torch.jit.trace(linear, x)
    assert "mkldnn" not in str(program.inlined_graph)
    assert_close(program(x), linear(x))


@needs_onednn
@pytest.mark.parametrize("shape", [(7,), (2, 5)])
def test_8_bits(shape):
    """
    Each product is off by at most half a step of either factor times the other, so their sum is;
    and it is off, since it is not float32. Without VNNI a processor has steps twice as large.
    """
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(24, 10)
    x = torch.randn(*shape, 24, generator=generator)
    with torch.no_grad():
        int8 = Int8Linear(linear)
        expected, found = linear(x), int8(x)
        weight = linear.weight.abs()
        step_x = (x.max() - x.min()) / 255
        step_w = int8.scales
        bound = (
            weight.sum(1) * step_x
            + x.abs().sum(-1, keepdim=True) * step_w / 2
            + 24 * step_x * step_w
        )
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= bound).all() and not torch.equal(found, expected)
    if PROCESSOR:
        steps = 127 if {"avx512_vnni", "avx_vnni"} & PROCESSOR else 63
        assert ((weight.amax(1) / step_w).round() == steps).all()


@needs_onednn
def test_8_bits_of_unusual_inputs():
    linear = nn.Linear(4, 3)
    int8 = Int8Linear(linear)
    with torch.no_grad():
        assert_close(int8(torch.zeros(1, 2, 4)), linear.bias.expand(1, 2, 3))
        for bad in (torch.nan, torch.inf):
            assert not int8(torch.tensor([[1.0, bad, 0.0, 2.0]])).isfinite().any()
        without = nn.Linear(4, 3, bias=False)
        x = torch.eye(4)
        assert_close(Int8Linear(without)(x), without(x), rtol=0.02, atol=0.02)


@needs_onednn
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copied, int8):
    """As a server makes them, for each of its processes."""
    form = trained_norms(build()).for_inference(int8=int8)
    assert_close(raw(copied(form), batch()), raw(form, batch()), rtol=0, atol=0)


@needs_onednn
def test_a_model_of_8_bits():
    """What coordinates and scores come from is not rounded."""
    model = trained_norms(build(config=FAMILY["refine"]))
    form = model.for_inference(int8=True)
    layers = {name for name, x in form.named_modules() if isinstance(x, Int8Linear)}
    ends = {name.rpartition(".")[2] for name in layers}
    assert ends == {"linear1", "linear2", "value_proj", "output_proj"}
    assert len(layers) == 4 * 4  # of two encoder and two decoder layers
    assert isinstance(form.head.class_embed[0], Linear)
    found, expected = raw(form, batch()), raw(model, batch())
    assert_close(found["pred_boxes"], expected["pred_boxes"], rtol=0, atol=0.05)
    assert not torch.equal(found["pred_boxes"], expected["pred_boxes"])


def test_8_bits_are_for_cpus():
    """TEST.INT8."""
    cfg = small_cfg("MODEL.DEVICE", "meta")
    with pytest.raises(InputError, match="TEST.INT8.* are for CPUs .* the model is on meta"):
        build_model(cfg).for_inference(int8=True)
    cfg = small_cfg("MODEL.DEVICE", "cuda", "TEST.INT8", True)
    with pytest.raises(InputError, match="TEST.INT8 .* MODEL.DEVICE is 'cuda'"):
        check_trainer_config(cfg)  # before a training, rather than at its first evaluation
