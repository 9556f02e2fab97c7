"""The levels that the head makes of a backbone's maps: their masks, and their projection."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2_ddetr.modeling import FeatureProjector
from detectron2_ddetr.modeling.head import resize_padding_mask

from .modeling_cases import randomise, small_features


def test_level_mask():
    """Parity A7: pixel floor(j * H / H_l) of the full mask; ceil(h * H_l / H) valid rows."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        full = torch.randint(1, 400, (2,), generator=generator).tolist()
        valid = [torch.randint(1, size + 1, (1,), generator=generator).item() for size in full]
        mask = torch.ones(1, *full, dtype=torch.bool)
        mask[:, : valid[0], : valid[1]] = False
        for stride in (8, 16, 32, 64):
            size = [-(-n // stride) for n in full]
            level = resize_padding_mask(mask, size)
            expected = torch.ones(1, *size, dtype=torch.bool)
            rows, columns = (-(-v * s // f) for v, s, f in zip(valid, size, full))
            expected[:, :rows, :columns] = False
            assert level.dtype == torch.bool and torch.equal(level, expected)


def test_level_mask_of_scattered_pixels():
    """Parity A7: nearest pixel, no average."""
    mask = torch.rand(2, 37, 61, generator=torch.Generator().manual_seed(0)) < 0.5
    level = resize_padding_mask(mask, (5, 8))
    for i in range(5):
        for j in range(8):
            assert torch.equal(level[:, i, j], mask[:, i * 37 // 5, j * 61 // 8])


def project(layer, x):
    conv, norm = layer
    x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    groups = x.unflatten(1, (32, -1))
    mean = groups.mean((2, 3, 4), keepdim=True)
    variance = (groups - mean).square().mean((2, 3, 4), keepdim=True)
    x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_projection():
    """Parity B8, B9: the 4th level reads the raw last map, the 5th the projected 4th."""
    projector = randomise(FeatureProjector([6, 10, 14], 64, 5))
    features, _ = small_features()
    maps = projector(features)
    assert [tuple(m.shape[2:]) for m in maps] == [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
    for level in range(3):
        assert_close(maps[level], project(projector[level], features[level]), rtol=0, atol=1e-4)
        assert projector[level][0].kernel_size == (1, 1)
    assert_close(maps[3], project(projector[3], features[2]), rtol=0, atol=1e-4)
    assert_close(maps[4], project(projector[4], maps[3]), rtol=0, atol=1e-4)


def test_single_level_projection():
    """Parity B10: one map in, one out."""
    projector = randomise(FeatureProjector([14], 64, 1))
    features, _ = small_features(1)
    (level,) = projector(features)
    assert_close(level, project(projector[0], features[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_one_value_per_group(training, compiled):
    """An image of one cell: the value minus itself, hence the bias, and no gradient but its own."""
    projector = randomise(FeatureProjector([6], 32, 3)).double().train(training)
    call = torch.compile(projector, fullgraph=True, backend="aot_eager") if compiled else projector
    x = torch.randn(1, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    maps = call([x])
    sum(level.sum() for level in maps).backward()
    zeros = [x.grad]
    for level, (conv, norm) in zip(maps, projector):
        assert_close(level, norm.bias.view(1, -1, 1, 1), rtol=0, atol=1e-9)
        assert_close(norm.bias.grad, torch.ones_like(norm.bias))
        zeros += [conv.weight.grad, norm.weight.grad]
    for gradient in zeros:
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_projection_initialisation():
    """Parity B8: Xavier uniform convolutions without bias, plain GroupNorm; too few levels."""
    for conv, norm in FeatureProjector([60, 80], 64, 4):
        fan = conv.weight[0].numel() + 64 * conv.weight[0, 0].numel()
        bound = math.sqrt(6 / fan)
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()
        assert norm.num_groups == 32 and norm.eps == 1e-5
        assert (norm.weight == 1).all() and not norm.bias.any()
    with pytest.raises(ValueError, match=r"\(2\).*\(3\)"):
        FeatureProjector([6, 10, 14], 64, 2)
