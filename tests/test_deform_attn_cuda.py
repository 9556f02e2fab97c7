"""The CUDA kernels: what they share with the CPU, and what only a GPU can get wrong."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import HAS_CUDA_KERNELS, ms_deform_attn_fused
from detectron2_ddetr.modeling.ops.ms_deform_attn import ms_deform_attn

from .op_cases import (
    NAMES,
    OPS,
    SEED,
    check_gradients,
    check_problem,
    check_random_case,
    make_problem,
    using,
)

DEVICE = "cuda"
entries = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
needs_kernels = pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="the CUDA kernels are not built")
both = pytest.mark.parametrize(
    "implementation", [pytest.param("compiled", marks=needs_kernels), "pytorch"]
)
pytestmark = pytest.mark.cuda


def on_device(problem):
    return dataclasses.replace(problem, tensors=[x.to(DEVICE) for x in problem.tensors])


def larger_problem(fused, dtype=torch.float32, seed=0):
    """Many queries over few cells, so that gradients meet in the same places."""
    return on_device(
        make_problem(fused, [(20, 30), (5, 7)], 4, 2, 700, 8, 32, 4, dtype=dtype, seed=seed)
    )


@both
@entries
def test_random_cases(fused, implementation, capsys):
    """Five hundred calls that were never made before, as on the CPU."""
    with capsys.disabled():
        print(f"\nDDETR_TEST_SEED={SEED}", end=" ")
    for case in range(500):
        with using(implementation):
            check_random_case(fused, case, DEVICE)


@both
@entries
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_larger_problem(fused, implementation, dtype):
    """Thousands of samples add up in the same cells."""
    problem = larger_problem(fused, dtype)
    check_problem(problem, implementation)


@needs_kernels
@pytest.mark.parametrize(
    ("fused", "numbers"), [(False, 0), (True, 2), (True, 4)], ids=["plain", "points", "boxes"]
)
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 30, 32, 64, 71, 1025])
def test_gradcheck(fused, numbers, dim):
    """All inputs, at every width."""
    problem = on_device(
        make_problem(
            fused, [(3, 2), (1, 2)], [1, 2] if fused else 2, 1, 2, 2, dim, numbers, seed=dim
        )
    )
    # Atomic sums come in any order.
    assert torch.autograd.gradcheck(
        problem.call, problem.leaves(), fast_mode=dim > 3, nondet_tol=1e-12
    )


@both
@entries
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20, -1e20])
@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
def test_unreadable_point(fused, implementation, bad, axis):
    """It reads nothing and has no gradient, nor does it spoil those of others."""
    problem = on_device(make_problem(fused, numbers=4, dtype=torch.float32))
    problem.tensors[2 if fused else 1].flatten(3, -2)[0, 2, 1, 3, axis] = bad
    leaves = problem.leaves()
    with using(implementation):
        output = problem.call(*leaves)
        output.sum().backward()
    check_gradients(problem, leaves, torch.ones_like(output), output)
    assert not leaves[2 if fused else 1].grad.flatten(3, -2)[0, 2, 1, 3].any()


@needs_kernels
@entries
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bits_are_rounded_once(fused, dtype):
    """They are summed in float32: many small ones do not vanish next to a large one."""
    problem = make_problem(fused, [(1, 1)], 1, 1, 3000, 1, 1, dtype=dtype)
    problem.tensors[1].fill_(0.5)
    if fused:
        problem.tensors[2].fill_(0)
    grad_output = torch.full((1, 3000, 1), 2.0**-10, dtype=dtype, device=DEVICE)
    grad_output[0, 0] = 1
    by_value = on_device(problem).run(grad_output)[1]
    assert_close(by_value.cpu().flatten(), torch.tensor([1 + 2999 * 2.0**-10]).to(dtype))


@needs_kernels
def test_spatial_shapes_on_the_gpu():
    """They may lie there, and nobody waits for them; forward and backward."""
    problem = larger_problem(False)
    shapes = torch.tensor(problem.sizes)
    results = []
    for place in ("cpu", DEVICE):
        leaves, shapes = problem.leaves(), shapes.to(place)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if place == DEVICE else "default")
        try:
            output = ms_deform_attn(leaves[0], shapes, *leaves[1:])
            output.backward(torch.ones_like(output))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append([output.detach()] + [x.grad for x in leaves])
    for a, b in zip(*results):
        assert_close(a, b)


@needs_kernels
def test_fused_entry_waits_for_nothing():
    """No number goes back to the host, forward or backward."""
    problem = larger_problem(True)
    leaves = problem.leaves()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = problem.call(*leaves)
        output.backward(torch.ones_like(output))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check_gradients(problem, leaves, torch.ones_like(output), output)


@needs_kernels
@entries
def test_second_stream(fused):
    """Work goes to the current stream: what that stream is still to write is seen."""
    problem = larger_problem(fused)
    expected = problem.run()
    stream = torch.cuda.Stream()
    late = dataclasses.replace(problem, tensors=[torch.zeros_like(x) for x in problem.tensors])
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # some 50 ms, while other streams are idle
        for to, source in zip(late.tensors, problem.tensors):
            to.copy_(source)
        results = late.run()
    stream.synchronize()
    for a, b in zip(results, expected):
        assert_close(a, b, rtol=1e-5, atol=1e-4)  # atomic sums come in any order


@needs_kernels
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@entries
def test_second_device(fused):
    """Tensors decide where it runs, not the current device."""
    problem = make_problem(fused)
    other = dataclasses.replace(problem, tensors=[x.to("cuda:1") for x in problem.tensors])
    with torch.cuda.device(0):
        results = other.run()
    for a, b in zip(results, problem.run()):
        assert a.device == torch.device("cuda:1")
        assert_close(a.cpu(), b)


@needs_kernels
@entries
def test_cuda_graph(fused):
    """Captured once, forward and backward, and replayed with other numbers."""
    first, other = larger_problem(fused, seed=1), larger_problem(fused, seed=2)
    shapes = torch.tensor(first.sizes, device=DEVICE)
    leaves = first.leaves()

    def run():
        value, *rest = leaves
        if fused:
            output = ms_deform_attn_fused(value, first.sizes, *rest, first.level_points)
        else:
            output = ms_deform_attn(value, shapes, *rest)
        return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # what is done once is done before
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        for to, source in zip(leaves, other.tensors):
            to.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, other.run()):
        assert_close(a, b, rtol=1e-5, atol=1e-4)  # atomic sums come in any order


@needs_kernels
@entries
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_deterministic_mode(fused, dtype):
    """Twenty times the same bits, and the numbers of the fast path."""
    problem = larger_problem(fused, dtype)
    grad_output = torch.rand(2, 700, 256, dtype=dtype, device=DEVICE)
    fast = problem.run(grad_output)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [problem.run(grad_output) for _ in range(20)]
    finally:
        torch.use_deterministic_algorithms(False)
    for result in others:
        for a, b in zip(result, first):
            assert torch.equal(a, b)
    for a, b in zip(first, fast):
        rounding = torch.finfo(a.dtype).eps if a.dtype.itemsize == 2 else 0
        assert_close(a, b, rtol=max(rounding, 1e-5), atol=1e-5 * b.abs().max().item())


@needs_kernels
@entries
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory(fused, dtype):
    """The results and, for 16 bits, float32 sums of them: nothing per sample and channel."""
    problem = larger_problem(fused, dtype)
    leaves = problem.leaves()
    per_sample = leaves[1 if not fused else 2].numel() // 2
    channels = leaves[0].shape[3]

    def peak(function):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, result

    forward, output = peak(lambda: problem.call(*leaves))
    assert forward < 1.5 * output.nbytes + 2**20
    grad_output = torch.ones_like(output)
    backward, _ = peak(lambda: torch.autograd.grad(output, leaves, grad_output))
    results = sum(x.nbytes for x in leaves)
    sums = 4 * sum(x.numel() for x in leaves) if dtype == torch.bfloat16 else 0
    assert backward < 1.5 * (results + sums) + 4 * 4 * per_sample + 2**20
    assert 4 * per_sample * channels > 3 * (results + sums)  # what official kernels never store


@needs_kernels
@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name, dtype):
    """The schema, the shapes of results and the derivative hold on a GPU too."""
    problem = on_device(make_problem("fused" in name, numbers=4, dtype=dtype))
    value, *rest = problem.leaves()
    if problem.fused:
        sizes = [[size for pair in problem.sizes for size in pair], problem.level_points]
    else:
        sizes = [torch.tensor(problem.sizes, device=DEVICE)]
    torch.library.opcheck(getattr(OPS, name).default, (value, *sizes, *rest))


@needs_kernels
@entries
def test_compiled(fused):
    """One graph, forward and backward."""
    problem = larger_problem(fused)
    expected = problem.run()
    torch._dynamo.reset()
    call = torch.compile(problem.call, fullgraph=True, backend="aot_eager")
    leaves = problem.leaves()
    output = call(*leaves)
    results = [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]
    for a, b in zip(results, expected):
        assert_close(a, b, rtol=1e-5, atol=1e-4)


@entries
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_leaves_the_operator_alone(fused, dtype):
    """What is float32 stays so."""
    problem = on_device(make_problem(fused, dtype=torch.float32))
    plain = problem.call()
    with torch.autocast("cuda", dtype):
        assert torch.equal(problem.call(), plain)
