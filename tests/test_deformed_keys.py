"""Attention to deformed keys: its formula in loops, its limits, its memory."""

import functools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2_ddetr.modeling import biased_attention, deformed_keys, position_bias
from detectron2_ddetr.modeling.bilinear import sample_rows
from detectron2_ddetr.modeling.deformed_keys import DeformedKeyAttention
from detectron2_ddetr.modeling.position_bias import RelativeBias

from .conftest import ROOT

HEADS, GROUPS, DIM = 4, 2, 8


def attention(**options):
    """With weights that say something, in float64."""
    torch.manual_seed(0)
    defaults = dict(map_size=(4, 5), groups=GROUPS, kernel_size=3, stride=2, offset_range_factor=2)
    module = DeformedKeyAttention(DIM, HEADS, **{**defaults, **options}).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def image(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def hat(a, b):
    """The kernel of the paper, Eq. (5)."""
    return max(0.0, 1.0 - abs(a - b))


def read(table, y, x):
    """(H, W, ...) at the cell (y, x), fractions included; zero outside."""
    h, w = table.shape[:2]
    return sum(hat(y, i) * hat(x, j) * table[i, j] for i in range(h) for j in range(w))


def axis(n, grid, of_keys):
    half = 0.5 if grid == "half_pixel" or of_keys else 0.0
    return [(i + half) / (n if grid == "half_pixel" else n - 1) * 2 - 1 for i in range(n)]


def to_cell(position, n):
    return (position + 1) / 2 * (n - 1)


def places_of(module, q, group):
    """(y, x) of each key of a group, in [-1, 1]."""
    width = DIM // GROUPS
    offsets = module.conv_offset(q[None, :, :, group * width : (group + 1) * width])[0]
    hk, wk = offsets.shape[:2]
    places = []
    for i, y in enumerate(axis(hk, module.grid, of_keys=True)):
        for j, x in enumerate(axis(wk, module.grid, of_keys=True)):
            dy, dx = offsets[i, j].tolist()
            if module.offset_range_factor < 0:
                places.append([min(max(p, -1.0), 1.0) for p in (y + dy, x + dx)])
            else:
                less = 0 if module.grid == "half_pixel" else 1
                reach = [module.offset_range_factor / (n - less) for n in (hk, wk)]
                places.append([y + math.tanh(dy) * reach[0], x + math.tanh(dx) * reach[1]])
    return places


def written_out(module, x):
    """One image, (H, W, C): each query, head and key by itself."""
    h, w, _ = x.shape
    q = module.proj_q(x)
    width, depth = DIM // GROUPS, DIM // HEADS
    places = [places_of(module, q, group) for group in range(GROUPS)]
    sampled = torch.cat(
        [
            torch.stack(
                [
                    read(x[..., g * width : (g + 1) * width], to_cell(y, h), to_cell(x_, w))
                    for y, x_ in places[g]
                ]
            )
            for g in range(GROUPS)
        ],
        dim=1,
    )
    k, v = module.proj_k(sampled), module.proj_v(sampled)
    out = torch.zeros_like(q)
    for head in range(HEADS):
        part = slice(head * depth, (head + 1) * depth)
        of_keys = places[head // (HEADS // GROUPS)]
        for i, y in enumerate(axis(h, module.grid, of_keys=False)):
            for j, x_ in enumerate(axis(w, module.grid, of_keys=False)):
                logits = k[:, part] @ q[i, j, part] / depth**0.5
                if module.bias == "relative":
                    table = module.rpe_table[head]
                    a, b = table.shape
                    logits = logits + torch.stack(
                        [read(table, to_cell((y - p) / 2, a), to_cell((x_ - r) / 2, b))
                         for p, r in of_keys]
                    )  # fmt: skip
                elif module.bias == "absolute":
                    logits = logits + module.rpe_table[head, i * w + j]
                out[i, j, part] = logits.softmax(0) @ v[:, part]
    return module.proj_out(out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(grid="end_point"),
        dict(offset_range_factor=-1),
        dict(stride=1, bias="none"),
        dict(bias="absolute"),
        dict(map_size=(7, 3)),  # of other images than these
    ],
)
@torch.no_grad()
def test_formula(options):
    module, x = attention(**options), image(2, 4, 5, DIM)
    if module.bias == "absolute":  # whose table has (4 // 2) * (5 // 2) keys; here there are 2 * 3
        module.rpe_table = torch.nn.Parameter(image(HEADS, 20, 6))
    expected = torch.stack([written_out(module, y) for y in x])
    assert_close(module(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wide", [0.9, 1.6])
def test_bilinear_reading_is_that_of_torch(wide):
    """Of maps and of tables, inside and outside, with its gradients."""
    maps, table = image(2, 4, 5, GROUPS, 3), image(HEADS, 5, 9)
    maps.requires_grad_(), table.requires_grad_()
    positions = (wide * image(2, GROUPS, 7, 2).tanh()).requires_grad_()
    flat = maps.permute(0, 3, 4, 1, 2).flatten(0, 1)
    grid = positions.flip(-1).flatten(0, 1)[:, None]
    expected = F.grid_sample(flat, grid, align_corners=True)[:, :, 0].transpose(1, 2)
    found = sample_rows(maps, positions)
    _same(found, expected.reshape(found.shape), (maps, positions))

    y, x = torch.linspace(-1, 1, 3).double(), torch.linspace(-0.9, 0.7, 4).double()
    query = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[:, :, None]  # (H, W, 1, 2)
    apart = ((query - positions[:, :, None, None]) / 2).flatten(0, 1)  # (N*G, H, W, K, 2)
    tables = table.unflatten(0, (GROUPS, -1)).expand(2, -1, -1, -1, -1).flatten(0, 1)
    expected = F.grid_sample(tables, apart.flip(-1).flatten(2, 3), align_corners=True)
    expected = expected.view(2, HEADS, 12, 7).transpose(2, 3)
    bias = RelativeBias.at(table, positions, y, x)
    _same(bias.whole(), expected, (table, positions))


def _same(found, expected, inputs):
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    by = image(*expected.shape)
    gradients = [torch.autograd.grad((x * by).sum(), inputs) for x in (found, expected)]
    assert_close(*gradients, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_no_query_has_a_say_in_where_keys_are():
    """(y, x) of each key of each group and image, whatever the number of queries."""
    module = attention(stride=2)
    _, deformation = module.weights(image(3, 6, 10, DIM))
    assert deformation.positions.shape == (3, GROUPS, 3, 5, 2)
    assert deformation.offsets.shape == (3, GROUPS, 2, 3, 5)
    assert deformation.reference.shape == (3, 5, 2)


@pytest.mark.parametrize("grid, less", [("half_pixel", 0), ("end_point", 1)])
@torch.no_grad()
def test_offsets_end_at_their_range(grid, less):
    """|offset| <= s / Hk, and almost that much with large numbers."""
    module = attention(grid=grid, offset_range_factor=3)
    module.conv_offset[3].weight.mul_(100)
    found = module.deformation(image(1, 8, 12, DIM))
    moved = (found.positions - found.reference).abs().amax((0, 1, 2, 3))
    limit = torch.tensor([3 / (4 - less), 3 / (6 - less)]).double()
    assert (moved <= limit * (1 + 1e-12)).all() and (moved > 0.99 * limit).all()


@torch.no_grad()
def test_keys_without_a_range_stay_in_the_map():
    module = attention(offset_range_factor=-1)
    module.conv_offset[3].weight.mul_(100)
    positions = module.deformation(image(1, 8, 12, DIM)).positions
    assert positions.min() == -1 and positions.max() == 1


def test_reference_grids():
    """Of seven keys: cells 0.43 to 5.57 of DAT; 0.5 to 6 of DAT++, whose last is moved inside."""
    for factor, first, last in ((2, 3 / 7, 39 / 7), (-1, 0.5, 6.0)):
        module = attention(stride=1, offset_range_factor=factor)
        torch.nn.init.zeros_(module.conv_offset[3].weight)
        place = to_cell(module.deformation(image(1, 7, 7, DIM)).positions[0, 0], 7)
        assert place[0, 0].tolist() == pytest.approx([first] * 2)
        assert place[-1, -1].tolist() == pytest.approx([last] * 2)


@torch.no_grad()
def test_bias_on_whole_displacements_is_a_table_lookup():
    """Keys that lie on cells, at the size of the table: Eq. (9) without any interpolation."""
    h, w = 4, 5
    table = image(HEADS, 2 * h - 1, 2 * w - 1)
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (h, w))
    keys = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(1, 1, h * w, 2)
    keys = keys.expand(1, GROUPS, -1, -1)
    bias = RelativeBias.at(table, keys, y, x)
    added = torch.zeros(HEADS, 1, h * w, h * w, dtype=torch.float64)
    for head, logits in enumerate(added):
        bias.by_head().add_to(logits, head)
    for found in (bias.whole()[0], added[:, 0]):
        _is_a_lookup(found.unflatten(2, (h, w)), table, h, w)


def _is_a_lookup(found, table, h, w):
    for key in range(h * w):
        for i in range(h):
            for j in range(w):
                expected = table[:, i - key // w + h - 1, j - key % w + w - 1]
                assert_close(found[:, key, i, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride, millions", [(2, (79.63, 0.508)), (1, (145.11, 2.032))])
def test_complexity(stride, millions):
    """Eq. (8) at 14x14 cells, 384 channels and k = 5: what is counted, but for LayerNorm."""
    from fvcore.nn import FlopCountAnalysis

    module = DeformedKeyAttention(
        384, 12, map_size=(14, 14), groups=1, kernel_size=5, stride=stride, offset_range_factor=2
    )
    counter = FlopCountAnalysis(module, torch.zeros(1, 14, 14, 384)).unsupported_ops_warnings(False)
    counts = counter.by_operator()
    hw, ns, c = 14 * 14, (14 // stride) ** 2, 384
    attention, network = 2 * hw * ns * c + 2 * hw * c**2 + 2 * ns * c**2, (25 + 2) * ns * c
    assert counts["linear"] + counts["matmul"] + counts["conv"] == attention + network
    assert (attention / 1e6, network / 1e6) == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("bias", ["relative", "absolute", "none"])
@pytest.mark.parametrize("at_a_time, kept", [(1, 0), (2**30, 0), (100, 2**30)])
def test_by_head_is_the_formula(bias, at_a_time, kept, monkeypatch):
    """With its gradients: few keys at a time, computed again in the backward pass or kept."""
    monkeypatch.setattr(position_bias, "_AT_A_TIME", at_a_time)
    monkeypatch.setattr(biased_attention, "_KEPT", kept)
    module, x = attention(bias=bias), image(2, 6, 7, DIM).requires_grad_()
    results = []
    at_once = functools.partial(biased_attention.attend_at_once, dropout=torch.nn.Identity())
    for attend in (biased_attention.attend, at_once):
        monkeypatch.setattr(deformed_keys, "attend", attend)
        out = module(x)
        sum_of = (out * image(*out.shape)).sum()
        results.append((out, *torch.autograd.grad(sum_of, [x, *module.parameters()])))
    assert_close(*results, rtol=1e-9, atol=1e-9)


def test_dropped_weights():
    """In training, of each weight by itself; without it nothing is dropped."""
    module, x = attention(attn_drop=0.5), image(1, 4, 5, DIM)
    expected = attention()(x)
    assert_close(module.eval()(x), expected)
    torch.manual_seed(0)
    mean = torch.stack([module.train()(x) for _ in range(2000)]).mean(0)
    assert 0 < (mean - expected).abs().max() < 0.1 * expected.abs().max()


def test_map_of_one_cell():
    """Where the authors' grid of DAT++ divides by zero."""
    for factor in (2, -1):
        out = attention(stride=1, offset_range_factor=factor)(image(1, 1, 3, DIM))
        assert out.isfinite().all()


@pytest.mark.parametrize("factor", [2, -1])
def test_bfloat16(factor):
    """Places stay float32 under autocast: 56 columns of keys are 56 numbers."""
    module, x = attention(stride=1, offset_range_factor=factor).float(), image(1, 40, 56, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x.float())
        found = module.deformation(module.proj_q(x.float()))
    assert found.positions.dtype == found.reference.dtype == torch.float32
    assert len(found.reference[0, :, 1].unique()) == 56
    expected = module(x.float())
    for found in (out, module.bfloat16()(x.bfloat16())):
        assert found.dtype == torch.bfloat16
        assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


PEAK = """
import re, sys, torch
from detectron2_ddetr.backbones.dat import DAT_SIZES, DATBackbone
name, stage, train = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "train"
with torch.device("meta"):
    attention = DATBackbone(**DAT_SIZES[name]).stages[stage].attns[1]
attention = attention.to_empty(device="cpu").train(train)
for parameter in attention.parameters():
    torch.nn.init.normal_(parameter, std=0.02)
side = 4 * 2**stage
x = torch.randn(1, 800 // side, 1344 // side, attention.proj_q.in_channels, requires_grad=train)
with torch.set_grad_enabled(train):
    out = attention(x)
if train:
    out.sum().backward()
# Of this program alone: ru_maxrss is also that of the process which started it.
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 2**20)
"""


needs_proc = pytest.mark.skipif(
    not os.path.isfile("/proc/self/status"), reason="no /proc tells the peak of a process"
)


@needs_proc
@pytest.mark.parametrize("name, stage, mode", [("DAT-T", 2, "train"), ("DAT-T++", 0, "eval")])
def test_memory_of_a_large_image(name, stage, mode):
    """800x1333: each head has 4200^2 or 67200 * 1050 weights. PyTorch itself is counted too."""
    command = [sys.executable, "-W", "ignore", "-c", PEAK, name, str(stage), mode]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0


@pytest.mark.parametrize("bias", ["relative", "none"])
@torch.no_grad()
def test_a_program_takes_any_batch(bias):
    """Where nothing is exported, each head goes by itself."""
    module = attention(bias=bias)
    x = torch.randn(5, 4, 7, DIM, dtype=torch.float64)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for n in (1, 2, 5):
        assert_close(program.module()(x[:n]), module(x[:n]))


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(groups=3), "4 heads must divide 8 channels, and 3 groups them"),
        (dict(bias="log"), "bias must be relative, absolute or none"),
        (dict(grid="corner"), "grid must be half_pixel or end_point"),
    ],
)
def test_what_cannot_be(options, says):
    with pytest.raises(ValueError, match=says):
        attention(**options)
