"""Samples that are projected beside tokens that are: the same numbers, in less work."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from detectron2_ddetr.analysis.attention_cost import ProjectingFirst, SamplingFirst
from detectron2_ddetr.modeling import MSDeformAttn

from .modeling_cases import deformable_attention_loop
from .op_cases import needs_kernels

SHAPES = [(9, 7), (4, 3)]
NUM_TOKENS = 9 * 7 + 4 * 3


def layer(kind=MSDeformAttn, d_model=16, dtype=torch.float64):
    torch.manual_seed(0)
    made = kind(d_model, n_levels=2, n_heads=2, n_points=3)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.uniform_(made.sampling_offsets.bias, -4, 4)  # which reaches beyond the edges
    return made.to(dtype)


def inputs(num_queries=5, d_model=16, size=2, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    query, src = (
        torch.randn(2, count, d_model, generator=generator, dtype=dtype).requires_grad_()
        for count in (num_queries, sum(h * w for h, w in shapes))
    )
    references = torch.rand(2, num_queries, 2, size, generator=generator, dtype=dtype)
    return query, references.requires_grad_(), src


def padding():
    """Right of the fifth column in the second image."""
    columns = torch.cat([torch.arange(h * w) % w * 7 // w for h, w in SHAPES])
    return torch.stack((columns > 9, columns > 4))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_both_orders(size, padded):
    """Results and all gradients, with samples outside, and in padding, which read no bias."""
    mask = padding() if padded else None
    found = []
    for kind in (ProjectingFirst, SamplingFirst):
        attention, given = layer(kind), inputs(size=size)
        result = attention(*given, SHAPES, mask)
        weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
        leaves = [*given, *attention.parameters()]
        found.append([result, *torch.autograd.grad((result * weights).sum(), leaves)])
    for a, b in zip(*found):
        assert_close(a, b, rtol=1e-10, atol=1e-12)
    expected = deformable_attention_loop(
        attention,
        *given,
        SHAPES,
        torch.zeros(2, NUM_TOKENS, dtype=torch.bool) if mask is None else mask
    )
    assert_close(result, expected, rtol=1e-10, atol=1e-12)


def counted(attention, *given):
    with FlopCounterMode(display=False) as counter:
        attention(*given)
    return counter.get_total_flops()


@needs_kernels
@pytest.mark.parametrize("dtype, products", [(torch.float32, 16), (torch.bfloat16, 64)])
def test_few_samples(dtype, products):
    """Up to a sample for so many multiply-adds of the projection, and then no more for more tokens;
    with one query more, all tokens are projected."""
    shapes = [(16, 12), (8, 6)]  # 240 tokens
    few = 240 * 64 // products // (2 * 2 * 3)
    assert few == {16: 80, 64: 20}[products]

    def work(kind, queries, factor=1):
        sizes = [(h * factor, w) for h, w in shapes]
        return counted(layer(kind, 64, dtype), *inputs(queries, 64, 2, dtype, sizes), sizes)

    assert work(MSDeformAttn, few) == work(SamplingFirst, few) == work(MSDeformAttn, few, factor=2)
    assert work(MSDeformAttn, few + 1) == work(ProjectingFirst, few + 1)
    assert work(ProjectingFirst, few) != work(SamplingFirst, few)


@needs_kernels
def test_what_projects_all_tokens():
    """Hooks see them, another projection may be no matrix, and a program is for any number."""
    attention = layer(d_model=64, dtype=torch.float32)
    given = inputs(3, 64, dtype=torch.float32)
    assert attention.samples_first(given[0], given[2])
    watched, other = copy.deepcopy(attention), copy.deepcopy(attention)
    seen = []
    watched.value_proj.register_forward_hook(lambda *args: seen.append(args[2].shape))
    other.value_proj = nn.Sequential(other.value_proj, nn.Identity())
    expected = attention(*given, SHAPES)
    for module in (watched, other):
        assert_close(module(*given, SHAPES), expected, rtol=1e-4, atol=1e-4)
        assert not module.samples_first(given[0], given[2])
    assert seen == [(2, NUM_TOKENS, 64)]

    def look(module, given, result):
        seen.append(result)

    look.only_looks = True  # as of a hunt for NaN, whose steps are those of before
    attention.value_proj.register_forward_hook(look)
    assert torch.equal(attention(*given, SHAPES), expected) and len(seen) == 1
    assert not attention.to("meta").samples_first(*(x.to("meta") for x in given[::2]))


@needs_kernels
def test_mixed_precision():
    """As exact as what projects tokens in 16 bits."""
    given = inputs(3, 64, dtype=torch.float32)
    exact = layer(ProjectingFirst, 64, torch.float32)(*given, SHAPES)
    errors = []
    for kind in (ProjectingFirst, SamplingFirst):
        attention = layer(kind, 64, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((attention(*given, SHAPES).float() - exact).square().mean().sqrt().item())
    assert 0 < errors[1] < 1.1 * errors[0]
