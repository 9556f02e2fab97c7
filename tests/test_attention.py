"""Multi-head attention beside PyTorch's own: the same results, draws and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.modeling import MultiheadAttention

SIZES = {"embed_dim": 24, "num_heads": 3, "dropout": 0.3, "batch_first": True}


def inputs(dtype=torch.float64, queries=7, keys=11):
    random = torch.Generator().manual_seed(1)
    sizes = (queries, keys, keys)
    return [torch.randn(2, n, 24, generator=random, dtype=dtype) for n in sizes]


def masks():
    """None; keys of an image; of all images; of each image and head. No query is left without."""
    random = torch.Generator().manual_seed(2)
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[1, 6:] = True
    shared, own = (torch.rand(*n, 7, 11, generator=random) < 0.4 for n in ((), (6,)))
    shared[:, 0], own[:, :, 0] = False, False
    return [{}, {"key_padding_mask": padding}, {"attn_mask": shared},
            {"attn_mask": own, "key_padding_mask": padding}]  # fmt: skip


def both(**sizes):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(**{**SIZES, **sizes}).double()
    ours = MultiheadAttention(24, 3, theirs.dropout).double()
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def run(module, tensors, **options):
    """Result, gradients of inputs and weights, and what the generator gives next."""
    tensors = [x.clone().requires_grad_() for x in tensors]
    module.zero_grad()
    torch.manual_seed(5)
    result, weights = module(*tensors, **options)
    assert weights is None
    result.backward(torch.linspace(-1, 1, result.numel()).view_as(result).to(result.dtype))
    return [result, *(x.grad for x in (*tensors, *module.parameters())), torch.rand(3)]


@pytest.mark.parametrize("mask", range(4))
@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_training(mask, dropout):
    """In another order of products, with the same weights dropped."""
    results = [run(m, inputs(), need_weights=False, **masks()[mask]) for m in both(dropout=dropout)]
    for ours, theirs in zip(*results):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_pytorch_s_own_is_for_the_rest(monkeypatch):
    """In training with dropout it is not called, without dropout it is."""
    called, theirs = [], F.multi_head_attention_forward

    def counted(*args, **kwargs):
        called.append(True)
        return theirs(*args, **kwargs)

    monkeypatch.setattr(F, "multi_head_attention_forward", counted)
    ours, _ = both()
    ours(*inputs(), need_weights=False)
    assert not called
    both(dropout=0.0)[0](*inputs(), need_weights=False)
    assert called == [True]


def test_nothing_is_dropped_in_evaluation():
    ours, theirs = (m.eval() for m in both())
    state = torch.get_rng_state()
    for options in masks():
        expected = theirs(*inputs(), need_weights=False, **options)[0]
        assert_close(ours(*inputs(), need_weights=False, **options)[0], expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_attention():
    """Where they are asked for, in training as well, it is PyTorch's."""
    results = []
    for module in both():
        torch.manual_seed(5)
        results.append(module(*inputs()))
    for ours, theirs in zip(*results):
        assert_close(ours, theirs)


def test_bfloat16():
    """Under autocast the result has 16 bits, as PyTorch's, and differs by their rounding."""
    results = []
    for module in (m.float() for m in both()):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(module(*inputs(torch.float32), need_weights=False)[0])
    assert results[0].dtype == results[1].dtype == torch.bfloat16
    assert_close(*results, rtol=0.02, atol=0.02 * results[1].abs().max().item())


@pytest.mark.parametrize("mask", range(4))
def test_16_bits_attend_in_float32(mask, monkeypatch):
    """In training without dropout, under autocast and by weights; what is around is of 16 bits."""
    seen, theirs = [], F.scaled_dot_product_attention

    def seeing(query, *args, **kwargs):
        seen.append(query.dtype)
        return theirs(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seeing)
    ours, reference = both(dropout=0.0)
    options = masks()[mask]
    expected = run(reference, inputs(), need_weights=False, **options)[:-1]
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(ours.float(), [x.float() for x in inputs()], need_weights=False, **options)[:-1]
    narrow = [x.bfloat16() for x in inputs()]
    weights = run(ours.bfloat16(), narrow, need_weights=False, **options)[:-1]
    assert seen == [torch.float32] * 2
    assert cast[0].dtype == weights[0].dtype == torch.bfloat16
    for x, y, exact in zip(cast, weights, expected):
        for result in (x, y):
            assert_close(result.double(), exact, rtol=0.05, atol=0.03 * exact.abs().max().item())

    ours.eval()(*narrow, need_weights=False, **options)
    assert torch.float32 not in seen[2:]


def test_the_last_projection_is_no_layer_to_call():
    """As in PyTorch's, so that what takes its place is not trained in one mode and left out in
    the other."""

    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for train in (True, False):
        found = []
        for module in both():
            module.train(train).out_proj.__class__ = Twice
            torch.manual_seed(5)
            found.append(module(*inputs(), need_weights=False)[0])
        assert_close(*found, rtol=1e-10, atol=1e-12)
