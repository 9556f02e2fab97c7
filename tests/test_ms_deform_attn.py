"""The operator and the module against loops, grid_sample and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2_ddetr.modeling import MSDeformAttn, locations_from_offsets, ms_deform_attn

from .modeling_cases import deformable_attention_loop, ms_deform_attn_loop, randomise

LEVELS = [(3, 5), (2, 7), (1, 1)]


def make_inputs(
    levels=LEVELS, images=2, queries=3, heads=2, points=2, dim=3, dtype=torch.float64, seed=0
):
    """Locations in [-0.5, 1.5]."""
    generator = torch.Generator().manual_seed(seed)
    num_positions = sum(h * w for h, w in levels)
    samples = (images, queries, heads, len(levels), points)
    value = torch.randn(images, num_positions, heads, dim, generator=generator, dtype=dtype)
    locations = 2 * torch.rand(*samples, 2, generator=generator, dtype=dtype) - 0.5
    attention = torch.rand(samples, generator=generator, dtype=dtype)
    return value, torch.tensor(levels), locations, attention / attention.sum((-2, -1), True)


def grid_sample_peer(value, shapes, locations, attention):
    """Per level `grid_sample` with zero padding, as in the official PyTorch fallback."""
    images, _, heads, dim = value.shape
    sizes = [h * w for h, w in shapes.tolist()]
    out = 0
    for level, part in enumerate(value.split(sizes, 1)):
        maps = part.permute(0, 2, 3, 1).reshape(images * heads, dim, *shapes[level].tolist())
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        read = F.grid_sample(maps, grid, align_corners=False).unflatten(0, (images, heads))
        out = out + (read * attention[:, :, :, level].transpose(1, 2)[:, :, None]).sum(-1)
    return out.permute(0, 3, 1, 2).flatten(2)


def one_read(value, levels, x, y):
    """What one point at pixel (x, y) of a single level reads; `value` is (H, W)."""
    height, width = levels
    location = torch.tensor([(x + 0.5) / width, (y + 0.5) / height], dtype=torch.float64)
    location = location.view(1, 1, 1, 1, 1, 2).requires_grad_()
    value = torch.as_tensor(value, dtype=torch.float64).view(1, -1, 1, 1).requires_grad_()
    weight = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    out = ms_deform_attn(value, torch.tensor([levels]), location, weight)
    out.sum().backward()
    return out.item(), value.grad.flatten(), location.grad.flatten(), weight.grad.flatten()


@pytest.mark.parametrize(
    "case",
    [{}, {"points": 1, "levels": [(4, 3)]}, {"heads": 3, "dim": 1}],
    ids=["multi_level", "one_point_one_level", "one_channel"],
)
def test_loop(case):
    """Parity D18: float64 against one cell at a time, points outside included."""
    value, shapes, locations, attention = make_inputs(**case)
    expected = ms_deform_attn_loop(value, shapes.tolist(), locations, attention)
    out = ms_deform_attn(value, shapes, locations, attention)
    assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_grid_sample(dtype, atol):
    """Parity D18, D19: values and gradients equal grid_sample's at a larger size."""
    value, shapes, locations, attention = make_inputs([(13, 9), (5, 4)], 2, 50, 4, 3, 8, dtype)
    inputs = [x.requires_grad_() for x in (value, locations, attention)]
    ours = ms_deform_attn(value, shapes, locations, attention)
    peer = grid_sample_peer(value, shapes, locations, attention)
    assert_close(ours, peer, rtol=0, atol=atol)
    grad_output = torch.randn(ours.shape, dtype=dtype)
    for a, b in zip(*(torch.autograd.grad(out, inputs, grad_output) for out in (ours, peer))):
        assert_close(a, b, rtol=atol, atol=20 * atol)


@pytest.mark.parametrize("dim", [1, 8, 30, 32, 64, 71, 128])
def test_gradcheck(dim):
    """Parity D19: all three gradients, at every width; points off the level included."""
    value, shapes, locations, attention = make_inputs([(3, 2), (1, 2)], 1, 2, 2, 1, dim)
    # Away from the centres of cells, where the derivative jumps.
    size = shapes.flip(1)[:, None]
    pixel = locations * size - 0.5
    locations = (pixel.floor() + 0.1 + 0.8 * (pixel - pixel.floor()) + 0.5) / size
    inputs = [x.requires_grad_() for x in (value, locations, attention)]
    assert torch.autograd.gradcheck(
        lambda v, loc, att: ms_deform_attn(v, shapes, loc, att), inputs, fast_mode=dim > 8
    )


def test_point_reads_its_cell():
    """(x, y) reads row y and column x of a map that is wider than high."""
    value = torch.arange(15.0).view(3, 5)
    assert one_read(value, (3, 5), x=4, y=1)[0] == pytest.approx(9.0)
    assert one_read(value, (3, 5), x=1.25, y=0.5)[0] == pytest.approx(1.25 + 2.5)


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize(
    ("pixel", "expected"),
    [(-1, 0), (-1 + 2**-20, 2**-20 * 10), (-0.5, 5), (0, 10), (3, 13), (3.5, 6.5), (4, 0)],
)
def test_border(axis, pixel, expected):
    """Parity D20: outside half a cell fades out; gradients vanish where nothing is read."""
    levels = (3, 4) if axis == "x" else (4, 3)
    along = torch.tensor([10.0, 11.0, 12.0, 13.0])
    value = along.expand(3, 4) if axis == "x" else along[:, None].expand(4, 3)
    x, y = (pixel, 1) if axis == "x" else (1, pixel)
    out, grad_value, grad_location, _ = one_read(value, levels, x, y)
    assert out == pytest.approx(expected, abs=1e-12)
    assert grad_value.sum() == pytest.approx(expected / (10 if pixel < 1 else 13), abs=1e-12)
    if pixel == 4:  # at -1 the slope is that of the inner side
        assert_close(grad_location, torch.zeros(2, dtype=torch.float64))
    elif pixel == -0.5:
        slope = torch.tensor([10.0 * 4, 0.0], dtype=torch.float64)  # per width: 4 cells
        assert_close(grad_location, slope if axis == "x" else slope.flip(0))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20, -1e20, 3e38])
def test_unusable_location(bad, axis):
    """Parity D20: reads zero with zero gradients, and leaves the other samples alone."""
    value, shapes, locations, attention = make_inputs(dtype=torch.float32)
    locations[1, 2, 1, 0, 1, axis] = bad
    muted = attention.clone()
    muted[1, 2, 1, 0, 1] = 0
    harmless = locations.clone()
    harmless[1, 2, 1, 0, 1] = 0.5
    inputs = [x.requires_grad_() for x in (value, locations, attention)]
    out = ms_deform_attn(value, shapes, locations, attention)
    assert_close(out, ms_deform_attn(value, shapes, harmless, muted))
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[1][1, 2, 1, 0, 1] == 0).all() and grads[2][1, 2, 1, 0, 1] == 0
    without = ms_deform_attn(value, shapes, harmless, muted).sum()
    assert_close(grads[0], torch.autograd.grad(without, value)[0])


def strided(x):
    """The same numbers, neither contiguous nor dense."""
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide.transpose(0, -1).contiguous().transpose(0, -1)[..., ::2]


def test_non_contiguous():
    """Parity D21: strided inputs and a strided output gradient."""
    value, shapes, locations, attention = make_inputs()
    plain = [x.clone().requires_grad_() for x in (value, locations, attention)]
    odd = [strided(x).requires_grad_() for x in (value, locations, attention)]
    assert not any(x.is_contiguous() for x in odd)
    outs = [ms_deform_attn(v, s, loc, a) for (v, loc, a), s in
            ((plain, shapes), (odd, shapes.T.contiguous().T))]  # fmt: skip
    assert_close(outs[0], outs[1])
    grad_output = torch.randn(outs[0].shape, dtype=torch.float64)
    outs[0].backward(grad_output)
    outs[1].backward(strided(grad_output))
    for a, b in zip(plain, odd):
        assert_close(a.grad, b.grad)


@pytest.mark.parametrize("images", [65, 80, 129])
def test_any_batch_size(images):
    """Parity D21, PEERS 7.18: no batch size is special."""
    value, shapes, locations, attention = make_inputs([(2, 3)], images, 2, 2, 1, 2)
    out = ms_deform_attn(value, shapes, locations, attention)
    for i in (0, images // 2, images - 1):
        one = slice(i, i + 1)
        assert_close(out[one], ms_deform_attn(value[one], shapes, locations[one], attention[one]))


@pytest.mark.parametrize(("images", "queries"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_do(images, queries):
    """Parity D21: no image or no query gives an empty result that can be differentiated."""
    value, shapes, locations, attention = make_inputs(images=images, queries=queries)
    inputs = [x.requires_grad_() for x in (value, locations, attention)]
    out = ms_deform_attn(value, shapes, locations, attention)
    assert out.shape == (images, queries, 2 * 3)
    out.sum().backward()
    assert all(x.grad is not None and (x.grad == 0).all() for x in inputs)


def test_int32_shapes():
    """Parity D21: shapes of either integer type."""
    value, shapes, locations, attention = make_inputs()
    out = ms_deform_attn(value, shapes.int(), locations, attention)
    assert_close(out, ms_deform_attn(value, shapes, locations, attention))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_values(dtype):
    """Parity D23, PEERS 7.12: on a wide map only the values are rounded, not the coordinates."""
    value, shapes, locations, attention = make_inputs([(3, 1333)], 1, 200, 2, 4, 8, torch.float32)
    value = value.to(dtype)
    expected = ms_deform_attn(value.float(), shapes, locations, attention)
    out = ms_deform_attn(value, shapes, locations, attention)
    assert out.dtype == dtype
    bound = 2 * torch.finfo(dtype).eps * value.float().abs().max()
    assert (out.float() - expected).abs().max() < bound
    if dtype == torch.bfloat16:  # the defect would be seen
        rounded = ms_deform_attn(value.float(), shapes, locations.to(dtype).float(), attention)
        assert (rounded - expected).abs().max() > 10 * bound
    inputs = [x.requires_grad_() for x in (value, locations, attention)]
    ms_deform_attn(*inputs[:1], shapes, *inputs[1:]).float().sum().backward()
    assert [x.grad.dtype for x in inputs] == [dtype, torch.float32, torch.float32]
    assert all(x.grad.isfinite().all() for x in inputs)


def test_deterministic():
    """Parity D31: the same gradients twice."""
    grads = []
    for _ in range(2):
        value, shapes, locations, attention = make_inputs([(3, 4)], 2, 40, dtype=torch.float32)
        inputs = [x.requires_grad_() for x in (value, locations, attention)]
        ms_deform_attn(value, shapes, locations, attention).square().sum().backward()
        grads.append([x.grad for x in inputs])
    for a, b in zip(*grads):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, s, loc, a: (v[0], s, loc, a), r"\(N, S, M, D\).*\(30, 2, 3\)"),
        (lambda v, s, loc, a: (v, s[:, :1], loc, a), r"spatial_shapes.*\(3, 1\)"),
        (lambda v, s, loc, a: (v, s, loc[..., :1], a), r"\(N, Q, M, L, P, 2\)"),
        (lambda v, s, loc, a: (v, s, loc, a[:, 1:]), r"\(2, 3, 2, 3, 2\).*\(2, 2, 2, 3, 2\)"),
        (lambda v, s, loc, a: (v[:1], s, loc, a), r"\(2, 2, 3\).*\(1, 2, 3\)"),
        (lambda v, s, loc, a: (v[:, 1:], s, loc, a), "cover 30 positions but value has 29"),
        (lambda v, s, loc, a: (v[:, :, :1], s, loc, a), r"\(2, 2, 3\).*\(2, 1, 3\)"),
        (lambda v, s, loc, a: (v, s[:2], loc, a), r"\(2, 2, 3\).*\(2, 2, 2\)"),
    ],
)
def test_shape_errors(change, message):
    """Parity D29: what does not fit is refused with both sides named."""
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*change(*make_inputs()))


def test_shapes_on_the_meta_device():
    """Parity D30: the shape and dtype of the result without its values."""
    value, shapes, locations, attention = (
        x if x.dtype == torch.int64 else x.to("meta") for x in make_inputs(dtype=torch.float32)
    )
    out = ms_deform_attn(value.bfloat16(), shapes, locations, attention)
    num_images, _, num_heads, channels = value.shape
    assert out.shape == (num_images, locations.shape[1], num_heads * channels)
    assert out.dtype == torch.bfloat16 and out.device.type == "meta"


def make_module(d_model=12, n_levels=2, n_heads=3, n_points=2):
    return randomise(MSDeformAttn(d_model, n_levels, n_heads, n_points).double())


@pytest.mark.parametrize("numbers", [2, 4])
def test_module_loop(numbers):
    """Parity D24-D27: points and boxes, joint softmax, layout (m, l, p), mask after projection."""
    levels, queries = [(3, 5), (2, 4)], 4
    module = make_module()
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, queries, 12, generator=generator, dtype=torch.float64)
    src = torch.randn(2, 23, 12, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, queries, 2, numbers, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 23, generator=generator) < 0.4
    args = (module, query, reference, src, levels, mask)
    expected = deformable_attention_loop(*args)
    out = module(query, reference, src, torch.tensor(levels), mask)
    assert_close(out, expected, rtol=0, atol=1e-10)
    unmasked = deformable_attention_loop(*args[:-1], torch.zeros_like(mask))
    assert_close(module(query, reference, src, torch.tensor(levels)), unmasked, rtol=0, atol=1e-10)


def test_offsets_around_a_point_are_cells():
    """Parity D24: an offset of (1, 1) is one cell of each level, so x is divided by W, y by H."""
    reference = torch.full((1, 1, 2, 2), 0.5)
    offsets = torch.ones(1, 1, 2, 2, 2)
    locations = locations_from_offsets(reference, offsets, [(4, 10), (5, 20)], [1, 1])
    assert_close(locations[0, 0, 0], torch.tensor([[0.6, 0.75], [0.55, 0.7]]))


def test_offsets_around_a_box_are_its_size():
    """Parity D25: an offset of P reaches the side of the box, whatever the size of the map."""
    reference = torch.tensor([0.5, 0.4, 0.2, 0.6]).view(1, 1, 1, 4)
    offsets = torch.full((1, 1, 2, 4, 2), 4.0)
    locations = locations_from_offsets(reference, offsets, [(3, 50)], [4])
    assert_close(locations[0, 0, 0, 0], torch.tensor([0.6, 0.7]))


def test_there_are_no_keys():
    """Where to read, and how much, is said by the query alone: what is read enters linearly."""
    module, levels = make_module(), torch.tensor([(3, 5), (2, 4)])
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 4, 12, generator=generator).double().requires_grad_()
    reference = torch.rand(1, 4, 2, 2, generator=generator).double()
    first, second = torch.randn(2, 1, 23, 12, generator=generator).double()

    def read(src):
        return module(query, reference, src, levels)

    assert_close(read(first + second) + read(0 * first), read(first) + read(second))
    read(first)[0, 1].sum().backward()
    assert query.grad[0, 1].any() and not query.grad[0, [0, 2, 3]].any()
    layers = (module.sampling_offsets, module.attention_weights)
    assert sum(layer.out_features for layer in layers) == 3 * 3 * 2 * 2  # (x, y, weight) m, l, k


def test_padding_leaks_nothing():
    """Parity D27: where everything is padding only the output bias is left."""
    module = make_module()
    shapes = torch.tensor([(3, 5), (2, 4)])
    out = module(
        torch.randn(1, 4, 12).double(), torch.rand(1, 4, 2, 2).double(),
        torch.randn(1, 23, 12).double(), shapes, torch.ones(1, 23, dtype=torch.bool),
    )  # fmt: skip
    assert_close(out, module.output_proj.bias.expand(1, 4, -1))


def test_initialisation():
    """Parity D28: eight directions, distance k + 1, uniform attention, Xavier projections."""
    module = MSDeformAttn(256, 4, 8, 4)
    bias = module.sampling_offsets.bias.view(8, 4, 4, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, (x, y) in enumerate(directions):
        for level in range(4):
            for k in range(4):
                expected = torch.tensor([x * (k + 1.0), y * (k + 1.0)])
                assert_close(bias[head, level, k], expected, rtol=0, atol=1e-5)
    for weight in (module.sampling_offsets.weight, module.attention_weights.weight):
        assert not weight.any()
    assert not module.attention_weights.bias.any()
    bound = math.sqrt(6 / 512)
    for projection in (module.value_proj, module.output_proj):
        assert not projection.bias.any()
        assert 0.99 * bound < projection.weight.abs().max() <= bound


def test_module_errors():
    """Parity D29: heads that do not divide the width, references of three numbers."""
    with pytest.raises(ValueError, match=r"250.*8"):
        MSDeformAttn(250, 4, 8, 4)
    module = make_module()
    with pytest.raises(ValueError, match=r"2 numbers.*4.*\(1, 4, 2, 3\)"):
        module(
            torch.randn(1, 4, 12).double(), torch.rand(1, 4, 2, 3).double(),
            torch.randn(1, 23, 12).double(), torch.tensor([(3, 5), (2, 4)]),
        )  # fmt: skip
