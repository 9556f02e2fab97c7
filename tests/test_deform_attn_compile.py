"""The operator under `opcheck`, `torch.compile` and `torch.export`, alone and in its module."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import (
    GRID_SAMPLE_DECOMPOSITIONS,
    MSDeformAttn,
    ms_deform_attn,
    ms_deform_attn_fused,
)

from .conftest import needs_compiler
from .modeling_cases import randomise
from .op_cases import IMPLEMENTATIONS, NAMES, OPS, make_problem, using

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
