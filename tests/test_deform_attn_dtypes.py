"""The operator in 16 bits and under autocast: what is rounded, once, and what never is."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2_ddetr.analysis.attention_cost import ProjectingFirst

from .modeling_cases import randomise
from .op_cases import OPS, check_gradients, make_problem, using
from .test_deform_attn_op import both, entries


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("numbers", [2, 4])
def test_coordinates_are_never_16_bit(implementation, dtype, numbers):
    """PEERS 7.12: on a wide map a 16-bit offset is added to a float32 reference in float32."""
    problem = make_problem(
        True, [(3, 1333)], 4, 1, 60, 2, 8, numbers, dtype, point_dtype=dtype, margin=0.001
    )
    if numbers == 2:  # offsets of a few cells
        problem.tensors[2].copy_(torch.rand_like(problem.tensors[2]) * 8 - 4)
    leaves = [x.detach() for x in problem.tensors]
    with using(implementation):
        output = problem.call(*leaves)
    check_gradients(problem, leaves, torch.ones_like(output), output)
    rounded = problem.to(torch.float64)
    rounded.tensors[1].copy_(rounded.tensors[1].to(dtype))
    wrong = (rounded.expected() - problem.to(torch.float64).expected()).abs().max()
    assert wrong > 10 * torch.finfo(dtype).eps  # the defect would be seen


@both
@entries
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bits_are_rounded_once(fused, implementation, dtype):
    """They are summed in float32: many small ones do not vanish next to a large one."""
    problem = make_problem(fused, [(1, 1)], 1, 1, 3000, 1, 1, dtype=dtype)
    if fused:
        problem.tensors[1].fill_(0.5)
        problem.tensors[2].fill_(0)
    else:
        problem.tensors[1].fill_(0.5)
    grad_output = torch.full((1, 3000, 1), 2.0**-10, dtype=dtype)
    grad_output[0, 0] = 1
    with using(implementation):
        by_value = problem.run(grad_output)[1]
    total = torch.tensor(1 + 2999 * 2.0**-10).to(dtype)
    assert_close(by_value.flatten(), total[None], rtol=0, atol=0)


@entries
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_operator_alone(fused, dtype):
    """The operator has no rule of its own: what is float32 stays so, bit by bit."""
    problem = make_problem(fused, dtype=torch.float32)
    plain = problem.run()
    with torch.autocast("cpu", dtype):
        cast = problem.run()
    for a, b in zip(plain, cast):
        assert torch.equal(a, b)


class ArgumentDtypes(TorchDispatchMode):
    """Writes down what dtypes the operator is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is OPS.ms_deform_attn_fused.default:
            self.seen.append([x.dtype for x in args if isinstance(x, torch.Tensor)])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numbers", [2, 4])
def test_module_under_autocast(dtype, numbers):
    """Projections are 16-bit and so is the result, references are not: the error is their own."""
    module = randomise(ProjectingFirst(16, 1, 2, 2), std=0.3)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 50, 16, generator=generator)
    # Each cell differs from the next, so that a rounded coordinate reads something else.
    src = torch.randn(1, 1333, 16, generator=generator)
    reference = torch.rand(1, 50, 1, numbers, generator=generator)
    reference[..., 2:] *= 0.01

    def run(reference):
        with torch.autocast("cpu", dtype), ArgumentDtypes() as dtypes:
            out = module(query, reference, src, [(1, 1333)])
        assert out.dtype == dtype
        assert dtypes.seen == [[dtype, torch.float32, dtype, dtype]]
        return (out.double() - exact).abs().max()

    exact = module.double()(query.double(), reference.double(), src.double(), [(1, 1333)])
    module.float()
    error, with_rounded = run(reference), run(reference.to(dtype).float())
    # 16 terms of each projection, rounded to `dtype` on the way in and out.
    assert error < 16 * torch.finfo(dtype).eps * exact.abs().max()
    assert with_rounded > 3 * error
