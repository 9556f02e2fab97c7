"""`torch.jit.trace`: a program for one image size computes what the model does for any other."""

import contextlib
import functools
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import detectron2_ddetr
from detectron2_ddetr.modeling import MSDeformAttn, ms_deform_attn, ms_deform_attn_fused
from detectron2_ddetr.modeling.ops import ms_deform_attn as definition
from detectron2_ddetr.toolbox import TOOLBOX, build_model

from .conftest import FAMILY, TWO_STAGE, small_cfg
from .modeling_cases import randomise
from .op_cases import IMPLEMENTATIONS, NAMES, make_problem, needs_kernels
from .test_export_graph import by_score

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning"
)
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
OPERATOR = "detectron2_ddetr::ms_deform_attn"
QUERIES = 60


@contextlib.contextmanager
def using(implementation):
    """As in op_cases, but for programs of the tracer, which do not run inside a dispatch mode."""
    library = torch.library.Library("detectron2_ddetr", "IMPL")
    for name in NAMES if implementation == "pytorch" else []:
        library.impl(name, getattr(definition, f"_{name}"), "CPU")
    yield
    library._destroy()


class Detections(nn.Module):
    """A model from and to plain tensors, as a tracer wants them; image after image."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *images):
        results = self.model([{"image": image} for image in images])
        return [
            x
            for result in (r["instances"] for r in results)
            for x in (result.pred_boxes.tensor, result.scores, result.pred_classes)
        ]


@functools.cache
def model_of(variant):
    """All weights do something; two-stage models propose more queries than small images have."""
    torch.manual_seed(0)
    opts = ["MODEL.DETR.HIDDEN_DIM", 64, "MODEL.DETR.NUM_QUERIES", QUERIES]
    model = build_model(small_cfg(*opts, config=FAMILY[variant])).eval()
    randomise(model.head, std=0.1)
    if variant != "two_stage" and variant in TWO_STAGE:
        # Their content goes by rank, which the rounding of near ties would change.
        model.head.query_embed.weight.data[:] = model.head.query_embed.weight.data[0]
    return Detections(model).requires_grad_(False)


def image(height, width):
    generator = torch.Generator().manual_seed(height)
    return 255 * torch.rand(3, height, width, generator=generator)


def calls(program, name=OPERATOR):
    """How often the operator stands in a traced program."""
    return sum(node.kind() == name for node in program.inlined_graph.nodes())


@pytest.mark.parametrize(
    ("variant", "implementation"),
    [
        *(pytest.param(variant, "compiled", marks=needs_kernels) for variant in FAMILY),
        ("two_stage", "pytorch"),
    ],
)
def test_traced_model(variant, implementation, tmp_path):
    """Larger and smaller images, the other way up, and after it was saved and loaded."""
    model = model_of(variant)
    with using(implementation):
        program = torch.jit.trace(model, image(100, 140), check_trace=False)
        # 2 layers of the encoder, 2 of the decoder.
        assert calls(program) == (0 if variant == "detr" else 4)
        torch.jit.save(program, tmp_path / "model.ts")
        program = torch.jit.load(tmp_path / "model.ts")
        for size in ((100, 140), (64, 200), (333, 250), (20, 30)):
            found, expected = (by_score(*call(image(*size))) for call in (program, model))
            assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sizes", [(28, 40), (120, 160)], ids=["small", "large"])
def test_traced_where_tokens_are_few(sizes):
    """All tokens become queries where there are fewer than queries, and not elsewhere."""
    model = model_of("two_stage")
    program = torch.jit.trace(model, image(*sizes), check_trace=False)
    numbers = []
    for size in ((28, 40), (120, 160)):
        assert_close(program(image(*size)), model(image(*size)), rtol=1e-4, atol=1e-3)
        images = model.model.preprocess_image([{"image": image(*size)}])
        numbers.append(model.model.network_outputs(images)["pred_logits"].shape[1])
    assert numbers[0] < numbers[1] == QUERIES


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="the host pads one image when traced")
def test_traced_batch():
    """Two images of any sizes: the padding is that of each run."""
    model = model_of("multi_scale")
    program = torch.jit.trace(model, (image(100, 140), image(70, 90)), check_trace=False)
    for sizes in (((100, 140), (70, 90)), ((50, 60), (130, 80))):
        images = [image(*size) for size in sizes]
        assert_close(program(*images), model(*images), rtol=1e-4, atol=1e-3)


def test_nothing_that_depends_on_the_image_becomes_a_constant():
    """The tracer warns of each number that does; of ours, none does."""
    model = model_of("two_stage")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.jit.trace(model, image(100, 140), check_trace=False)
    ours = Path(detectron2_ddetr.__file__).parent
    files = [w.filename for w in caught if issubclass(w.category, torch.jit.TracerWarning)]
    assert files  # torch's own, at least
    assert [f for f in files if ours in Path(f).parents and "host" not in Path(f).parts] == []


class Maps(nn.Module):
    """The fused operator on maps, so that the tracer sees where the sizes come from."""

    def __init__(self, level_points):
        super().__init__()
        self.level_points = level_points

    def forward(self, first, second, *rest):
        value = torch.cat((first.flatten(1, 2), second.flatten(1, 2)), dim=1)
        sizes = [(x.shape[1], x.shape[2]) for x in (first, second)]
        return ms_deform_attn_fused(value, sizes, *rest, self.level_points)


@both
@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize("points", [2, [3, 1], None], ids=str)
def test_traced_operator(points, numbers, implementation):
    """Any N, Q, H and W; also with as many points of each level as one likes."""

    def arguments(problem):
        value, *rest = problem.tensors
        parts = value.split([h * w for h, w in problem.sizes], dim=1)
        return [*(part.unflatten(1, s) for part, s in zip(parts, problem.sizes)), *rest]

    shared = {"points": points or 2, "numbers": numbers}
    first = make_problem(True, [(11, 7), (9, 13)], images=5, queries=6, seed=1, **shared)
    other = make_problem(True, [(6, 4), (8, 3)], images=3, queries=9, seed=2, **shared)
    with using(implementation):
        module = Maps(None if points is None else first.level_points)
        program = torch.jit.trace(module, arguments(first))
        assert calls(program) == 1
        for problem in (first, other):
            assert_close(program(*arguments(problem)), problem.expected())


@both
def test_traced_plain_operator(implementation):
    """Sizes are an argument of the program, and are checked in every run."""
    first = make_problem(False, [(11, 7), (9, 13)], queries=6, seed=1)
    other = make_problem(False, [(6, 4), (8, 3)], images=3, queries=9, seed=2)
    with using(implementation):
        value, *rest = first.tensors
        program = torch.jit.trace(ms_deform_attn, (value, torch.tensor(first.sizes), *rest))
        value, *rest = other.tensors
        assert_close(program(value, torch.tensor(other.sizes), *rest), other.expected())
        with pytest.raises(RuntimeError, match="cover 117 positions but value has 48"):
            program(value, torch.tensor([(9, 13), (0, 0)]), *rest)


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="TracingAdapter is detectron2's")
@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_detectron2_adapter(variant):
    """From and to detectron2's own structures, detections in the size that is asked for."""
    from detectron2.export import TracingAdapter

    model = model_of(variant).model
    sample = [{"image": image(100, 140)}]
    adapter = TracingAdapter(model, sample)
    program = torch.jit.trace(adapter, adapter.flattened_inputs)
    other = image(170, 90)
    (traced,), (eager,) = adapter.outputs_schema(program(other)), model([{"image": other}])
    traced, eager = traced["instances"], eager["instances"]
    assert tuple(traced.image_size) == eager.image_size == (170, 90)
    assert_close(traced.pred_boxes.tensor, eager.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    assert_close(traced.scores, eager.scores)
    assert_close(traced.pred_classes, eager.pred_classes)


# Counters.

#: Of the models here.
HEADS, CHANNELS, POINTS, LAYERS = 4, 64, 4, 2


def levels(height, width, number):
    """Cells of each level of an image, by the strides of a ResNet's convolutions."""
    halves = [(height, width)]
    while len(halves) < 7:
        halves.append(tuple(-(-side // 2) for side in halves[-1]))
    return [h * w for h, w in halves[3 : 3 + number]]


def counted(height, width):
    """Multiplications with an addition, and numbers that come out, of all operators of a model."""
    cells = sum(levels(height, width, 4))
    queries = LAYERS * cells + LAYERS * QUERIES
    flops = 0
    for _ in range(queries):
        for _head in range(HEADS):
            for _level in range(4):
                flops += POINTS * 4 * (CHANNELS // HEADS)  # of each sample 4 cells
    return flops, queries * CHANNELS


def test_counters_of_fvcore():
    """FLOPs by operator and by module, and activations; nothing is left out as unsupported."""
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    model, inputs = model_of("multi_scale"), image(96, 140)
    flops, activations = counted(96, 140)
    counter = FlopCountAnalysis(model, inputs)
    assert counter.by_operator()["ms_deform_attn"] == flops
    assert OPERATOR not in counter.unsupported_ops()
    encoder = model.model.head.transformer.encoder.layers
    cells = sum(levels(96, 140, 4))
    name = "model.head.transformer.encoder.layers.1.self_attn"
    assert model.get_submodule(name) is encoder[1].self_attn
    by_operator = counter.by_module_and_operator()[name]
    assert by_operator["ms_deform_attn"] == cells * HEADS * 4 * POINTS * 4 * (CHANNELS // HEADS)
    counter = ActivationCountAnalysis(model, inputs)
    assert counter.by_operator()["ms_deform_attn"] == activations


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="they are detectron2's")
def test_counters_of_detectron2():
    """As tools/analyze_model.py calls them, with a whole sample of a loader."""
    from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators

    model = model_of("multi_scale").model
    sample = [{"image": image(96, 140), "file_name": "a.png", "height": 48, "width": 70}]
    flops, activations = counted(96, 140)
    assert FlopCountAnalysis(model, sample).by_operator()["ms_deform_attn"] == flops
    counts = activation_count_operators(model, sample)  # in millions
    assert counts["ms_deform_attn"] == pytest.approx(activations / 1e6)


@both
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_counter_of_torch(fused, implementation):
    """It takes a multiplication and an addition for two; a gradient is as much by each part."""
    from torch.utils.flop_counter import FlopCounterMode

    problem = make_problem(fused, points=[3, 1, 2] if fused else 2)
    samples = math.prod(problem.tensors[-1].shape)
    forward = 2 * 4 * 3 * samples  # D = 3
    name = "ms_deform_attn_fused" if fused else "ms_deform_attn"
    for needs, parts in (([0], 1), ([1, 2], 1), ([0, 2], 2), ([], 0)):
        leaves = problem.leaves()
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i in needs)
        with using(implementation), FlopCounterMode(display=False) as counter:
            output = problem.call(*leaves)
            if needs:
                output.sum().backward()
        counts = counter.get_flop_counts()["Global"]
        assert counts[getattr(torch.ops.detectron2_ddetr, name)] == forward
        backward = getattr(torch.ops.detectron2_ddetr, f"{name}_backward")
        assert counts.get(backward, 0) == parts * forward


def test_counter_of_torch_on_meta():
    """Nothing has to be computed to be counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = MSDeformAttn(64, n_levels=2, n_heads=4, n_points=3)
        tokens, queries = torch.rand(2, 5 * 7 + 3 * 4, 64), torch.rand(2, 9, 64)
        with FlopCounterMode(display=False) as counter:
            module(queries, torch.rand(2, 9, 2, 2), tokens, [(5, 7), (3, 4)])
    counts = counter.get_flop_counts()["Global"]
    samples = 2 * 9 * 4 * 2 * 3
    assert counts[torch.ops.detectron2_ddetr.ms_deform_attn_fused] == samples * 2 * 4 * 16
