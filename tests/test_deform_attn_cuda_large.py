"""The CUDA kernels where a grid of threads, or a number of 32 bits, ends."""

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import ms_deform_attn_fused
from detectron2_ddetr.modeling.ops.ms_deform_attn import ms_deform_attn

from .op_cases import make_problem
from .test_deform_attn_cuda import DEVICE, entries, needs_kernels, on_device

pytestmark = pytest.mark.cuda


def free_memory(needed):
    """Skips a test that needs more GiB than there are."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < needed:
        pytest.skip(f"needs {needed} GiB of GPU memory, {free:.0f} are free")


@needs_kernels
@entries
@pytest.mark.parametrize("images", [65_535, 70_000])
def test_more_images_than_a_grid_has_rows(fused, images):
    """A grid of threads ends at 65,535 in y and z."""
    problem = make_problem(fused, [(2, 1)], 1, images, 1, 2, 2, dtype=torch.float32)
    results = on_device(problem).run()
    assert_close(results[0].cpu().double(), problem.to(torch.float64).expected())
    for a, b in zip(results, problem.run()):
        assert_close(a.cpu(), b)


def single_point(fused, queries, x, y):
    """(1, Q, 1, ...) arguments of one level and one point at (x, y) of it, for one head."""
    location = torch.tensor([x, y], device=DEVICE)
    if fused:
        zeros = torch.zeros(1, queries, 1, 1, 2, device=DEVICE, dtype=torch.bfloat16)
        return [location.expand(1, queries, 1, 2), zeros, zeros[..., 0]]
    return [
        location.expand(1, queries, 1, 1, 1, 2),
        torch.ones(1, queries, 1, 1, 1, device=DEVICE),
    ]


@needs_kernels
@entries
def test_value_of_more_than_2_31_elements(fused):
    """The last cell is read, and the gradient arrives there and nowhere else."""
    free_memory(40)
    height, width, channels = 4096, 2049, 257
    value = torch.zeros(1, height * width, 1, channels, device=DEVICE, dtype=torch.bfloat16)
    assert value.numel() > 2**31
    last = torch.linspace(1, 2, channels, device=DEVICE).bfloat16()
    value[0, -1, 0] = last
    value.requires_grad_()
    rest = single_point(fused, 1, (width - 0.5) / width, (height - 0.5) / height)
    sizes = [(height, width)]
    if fused:
        output = ms_deform_attn_fused(value, sizes, *rest)
    else:
        output = ms_deform_attn(value, torch.tensor(sizes), *rest)
    # The coordinates are float32, so the sample lies a thousandth of a cell off at most.
    assert_close(output[0, 0].detach(), last, rtol=1e-2, atol=0)
    output.backward(torch.ones_like(output))
    assert_close(value.grad[0, -1, 0], torch.ones_like(last), rtol=1e-2, atol=0)
    assert value.grad[0, : -width - 1].abs().max() == 0


@needs_kernels
@entries
def test_output_of_more_than_2_31_elements(fused):
    """The last query is written, and its gradient is read."""
    free_memory(60)
    channels = 1024
    queries = 2**31 // channels + 1
    value = torch.linspace(1, 2, channels, device=DEVICE).bfloat16().view(1, 1, 1, channels)
    value.requires_grad_()
    rest = single_point(fused, queries, 0.5, 0.5)
    if fused:
        output = ms_deform_attn_fused(value, [(1, 1)], *rest)
    else:
        output = ms_deform_attn(value, torch.tensor([[1, 1]]), *rest)
    assert output.numel() > 2**31
    for query in (0, queries // 2, queries - 1):
        assert torch.equal(output[0, query].detach(), value[0, 0, 0].detach())
    grad_output = torch.zeros_like(output)
    grad_output[0, -1] = 3
    output.backward(grad_output)
    assert_close(value.grad, torch.full_like(value, 3))
