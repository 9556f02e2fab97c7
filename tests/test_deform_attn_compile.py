"""The operator under `opcheck`, `torch.compile` and `torch.export`, alone and in whole models."""

import functools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.meta_arch import padding_mask
from detectron2_ddetr.modeling import (
    GRID_SAMPLE_DECOMPOSITIONS,
    MSDeformAttn,
    ms_deform_attn,
    ms_deform_attn_fused,
)
from detectron2_ddetr.toolbox import build_model

from .conftest import FAMILY, VARIANTS, needs_compiler, small_cfg
from .modeling_cases import HEADS, randomise, small_features, small_head
from .op_cases import IMPLEMENTATIONS, NAMES, OPS, make_problem, using
from .test_meta_arch import build_tiny_backbone  # noqa: F401  registers it

DYNAMIC = torch.export.Dim.DYNAMIC
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
entries = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing compiled by another test is used again, and a second compilation is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def arguments(name, requires_grad=False, **kwargs):
    """What the operator of this name takes."""
    problem = make_problem("fused" in name, numbers=4, **kwargs)
    value, *rest = (x.requires_grad_(requires_grad) for x in problem.tensors)
    if problem.fused:
        sizes = [[size for pair in problem.sizes for size in pair], problem.level_points]
    else:
        sizes = [torch.tensor(problem.sizes)]
    if "backward" not in name:
        return (value, *sizes, *rest)
    grad_output = torch.ones_like(problem.call())
    needs = [True] * (1 + len(rest))
    return (grad_output, value, *sizes, *rest, *needs, False)


@pytest.mark.parametrize(
    ("name", "requires_grad"),  # there is no second derivative
    [*((name, False) for name in NAMES), (NAMES[0], True), (NAMES[2], True)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name, requires_grad, dtype):
    """The schema, the shapes of results and the derivative hold; nothing is changed or shared."""
    # Of the fused entry offsets and logits may be 16-bit too; references are float32.
    kwargs = {"point_dtype": dtype} if "fused" in name else {}
    args = arguments(name, requires_grad, dtype=dtype, **kwargs)
    torch.library.opcheck(getattr(OPS, name).default, args)


@both
@pytest.mark.parametrize("name", NAMES)
def test_meta_of_strided_inputs(name, implementation):
    """Results are contiguous, whatever the inputs: what compilers are told is what they get."""
    args = [
        x.transpose(0, 1).contiguous().transpose(0, 1)
        if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments(name)
    ]  # fmt: skip
    with using(implementation):
        real = getattr(OPS, name)(*args)
    meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in args]
    told = getattr(OPS, name)(*meta)
    for a, b in zip(real, told) if isinstance(real, tuple) else [(real, told)]:
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@both
@pytest.mark.parametrize("name", [name for name in NAMES if "backward" in name])
def test_gradients_that_are_not_needed(name, implementation):
    """One that nobody asked for is empty; the others are as if all were asked for."""
    args = arguments(name)
    count = sum(isinstance(x, bool) for x in args) - 1
    with using(implementation):
        every = getattr(OPS, name)(*args)
        for needed in range(count):
            needs = [i == needed for i in range(count)]
            real = getattr(OPS, name)(*args[: -count - 1], *needs, False)
            for i, (got, full) in enumerate(zip(real, every)):
                assert_close(got, full if i == needed else full.new_empty(0))


class Maps(nn.Module):
    """The operator on maps, so that compilers see where the sizes come from."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, maps, *rest):
        """(N, H_l, W_l, M, D) of each level, and the other float arguments."""
        value = torch.cat([x.flatten(1, 2) for x in maps], dim=1)
        sizes = [(x.shape[1], x.shape[2]) for x in maps]
        if self.fused:
            return ms_deform_attn_fused(value, sizes, *rest)
        return ms_deform_attn(value, torch.tensor(sizes), *rest)


def on_maps(problem):
    """Leaves, and how `Maps` takes them."""
    value, *rest = problem.leaves()
    parts = value.detach().split([h * w for h, w in problem.sizes], dim=1)
    maps = [part.unflatten(1, s).requires_grad_() for part, s in zip(parts, problem.sizes)]
    return [*maps, *rest], (maps, *rest)


def two_problems(fused, **kwargs):
    """
    Every size that may change differs, N, Q, H and W; heads, levels and points stay.

    In the first all differ from each other, since a compiler takes equal sizes for one.
    """
    shared = {"points": 2, "heads": 3, "dim": 8, "numbers": 4, **kwargs}
    return (
        make_problem(fused, [(11, 7), (9, 13)], images=5, queries=6, seed=1, **shared),
        make_problem(fused, [(6, 4), (8, 3)], images=3, queries=9, seed=2, **shared),
    )


def operators(program):
    """Calls of our operators in a graph."""
    return [node.target for node in program.graph.nodes if "detectron2_ddetr" in str(node.target)]


@entries
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_operator(fused, dtype):
    """Forward and backward in one graph each, and not again for other sizes."""
    compiled = torch.compile(Maps(fused), fullgraph=True, backend="aot_eager", dynamic=True)
    for problem in two_problems(fused, dtype=dtype):
        leaves, args = on_maps(problem)
        output = compiled(*args)
        assert torch.equal(output, problem.call())
        grad_output = torch.rand_like(output)
        got = torch.autograd.grad(output, leaves, grad_output)
        by_value, *rest = problem.run(grad_output)[1:]
        assert_close(torch.cat([x.flatten(1, 2) for x in got[:2]], dim=1), by_value)
        for a, b in zip(got[2:], rest):
            assert_close(a, b)


@entries
@pytest.mark.parametrize("strict", [False, True])
def test_exported_operator(fused, strict):
    """One node in the graph, with any N, Q, H and W."""
    first, other = two_problems(fused)
    maps = [{0: DYNAMIC, 1: DYNAMIC, 2: DYNAMIC}] * 2
    rest = [{0: DYNAMIC, 1: DYNAMIC}] * (3 if fused else 2)
    shapes = {"maps": maps, "rest": tuple(rest)}
    program = torch.export.export(
        Maps(fused), on_maps(first)[1], dynamic_shapes=shapes, strict=strict
    )
    assert len(operators(program)) == 1
    for problem in (first, other):
        assert torch.equal(program.module()(*on_maps(problem)[1]), problem.call())


def test_decomposed_operator():
    """Written with `grid_sample`, for runtimes that do not know the operator; any size again."""
    first, other = two_problems(True)
    shapes = {
        "maps": [{0: DYNAMIC, 1: DYNAMIC, 2: DYNAMIC}] * 2,
        "rest": ({0: DYNAMIC, 1: DYNAMIC},) * 3,
    }
    program = torch.export.export(Maps(True), on_maps(first)[1], dynamic_shapes=shapes)
    program = program.run_decompositions(GRID_SAMPLE_DECOMPOSITIONS)
    assert operators(program) == []
    assert any("grid_sampler" in str(node.target) for node in program.graph.nodes)
    for problem in (first, other):
        assert_close(program.module()(*on_maps(problem)[1]), problem.expected())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
@pytest.mark.parametrize("numbers", [2, 4])
def test_compiled_module(numbers, backend):
    """
    One graph and equal gradients; under autocast, as it is trained.

    Inductor does not round what it fuses to 16 bits in between, so it is compared in float32.
    """
    module = randomise(MSDeformAttn(16, 2, 2, 3))
    sizes = [(3, 5), (2, 7)]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 16, generator=generator)
    reference = torch.rand(2, 4, 2, numbers, generator=generator)
    src = torch.randn(2, 29, 16, generator=generator)
    mask = torch.rand(2, 29, generator=generator) < 0.3

    def run(module):
        with torch.autocast("cpu", torch.bfloat16, enabled=backend != "inductor"):
            out = module(query, reference, src, sizes, mask)
        return [out, *torch.autograd.grad(out.float().square().sum(), [*module.parameters()])]

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for a, b in zip(run(compiled), run(module)):
        assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


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


@pytest.mark.parametrize("variant", ["multi_scale", "refine"])
def test_compiled_head(variant):
    """
    Encoder, decoder and heads, forward and backward, without a break. Of the other heads see
    `test_compiled_model` and `test_exported_model`.
    """
    head = randomise(small_head(**HEADS[variant]), std=0.1)
    model = Outputs(head)
    args = small_features(HEADS[variant].get("num_levels", 4))
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        logits, boxes = call(*args)
        (logits.square().sum() + boxes.square().sum()).backward()
        results.append([logits, boxes] + [p.grad for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        assert_close(a, b)


def test_compiled_model():
    """From the batch of images to the predictions of all layers, as training calls it."""
    model = build_model(small_cfg(config=FAMILY["two_stage"])).eval()
    randomise(model.head, std=0.1)
    images = [{"image": 255 * torch.rand(3, h, w)} for h, w in ((72, 104), (61, 83))]
    images = model.preprocess_image(images)
    results = []
    network_outputs = torch.compile(model.network_outputs, fullgraph=True, backend="aot_eager")
    for call in (model.network_outputs, network_outputs):
        model.zero_grad()
        out = call(images)
        layers = [out, *out["aux_outputs"], *filter(None, [out.get("enc_outputs")])]
        predictions = [layer[key] for layer in layers for key in ("pred_logits", "pred_boxes")]
        sum(x.square().sum() for x in predictions).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append(predictions + gradients)
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


@functools.cache
def exported(variant):
    """
    A model, and its program of images and padding.

    Most have a backbone of two convolutions, since a ResNet takes as long as all the rest. Not so
    DETR: where the sizes of its map are quotients, PyTorch's reshape guards against a batch of one.
    """
    layers = ["MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2]
    if variant not in ("single_scale_dc5", "detr"):
        layers += ["MODEL.BACKBONE.NAME", "build_tiny_backbone"]
        layers += ["MODEL.DETR.IN_FEATURES", ["coarse"], "MODEL.DETR.NUM_FEATURE_LEVELS"]
        layers += [1 if variant == "single_scale" else 2]
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
#: the others where ONNX is installed.
WITHOUT_OPERATOR = "two_stage"


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


@pytest.mark.parametrize("variant", ["multi_scale", WITHOUT_OPERATOR, "dino"])
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
