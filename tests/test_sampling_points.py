"""The points of three deformable convolutions, followed backwards and drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from detectron2_ddetr.backbones.deformable_resnet import DeformableBottleneck
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_backbone
from detectron2_ddetr.visualization.deformable_convolution import (
    deformed_layers,
    draw_sampling_points,
    sampling_points,
)

from .conftest import small_cfg
from .test_deformable_resnet import ON, options

IMAGE = (3, 150, 230)


def backbone_of(*opts, std=0.3):
    """Offsets of a few cells."""
    torch.manual_seed(0)
    backbone = build_backbone(small_cfg(*opts)).eval()
    for name, parameter in backbone.named_parameters():
        if "conv2_offset" in name:
            nn.init.normal_(parameter, std=std if "bias" in name else std / 20)
    return backbone


def by_a_loop(backbone, image, place, group):
    """
    Through res5.2, res5.1 and res5.0, each tap for itself; offsets are read by hooks of its own,
    and the stride of each block is that of a ResNet.
    """
    offsets = {}
    hooks = [
        backbone.res5[i].conv2_offset.register_forward_hook(
            lambda *x, i=i: offsets.update({i: x[-1][0]})
        )
        for i in range(3)
    ]
    with torch.no_grad():
        backbone(image[None])
    for hook in hooks:
        hook.remove()
    stride_1x1 = backbone.res5[0].conv1.stride[0]
    points = [(round((place[1] - 0.5) / 32), round((place[0] - 0.5) / 32))]
    for i in (2, 1, 0):
        stride = {2: 1, 1: 1, 0: 2 // stride_1x1}[i]
        found = []
        for y, x in points:
            height, width = offsets[i].shape[1:]
            row, column = (min(max(round(v), 0), n - 1) for v, n in ((y, height), (x, width)))
            for tap in range(9):
                channel = 18 * group + 2 * tap
                dy, dx = offsets[i][channel : channel + 2, row, column].tolist()
                found.append((y * stride + tap // 3 - 1 + dy, x * stride + tap % 3 - 1 + dx))
        points = found
    scale = 16 * stride_1x1  # px between two cells of the input of res5.0's convolution
    return np.array([(x * scale + 0.5, y * scale + 0.5) for y, x in points])


@pytest.mark.parametrize("version, groups, in_1x1", [(1, 1, False), (2, 2, False), (2, 1, True)])
def test_points_are_those_of_a_loop(version, groups, in_1x1):
    opts = [*options(version, groups), "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1]
    backbone, image = backbone_of(*opts), torch.randn(IMAGE)
    layers = deformed_layers(backbone, image)
    assert [layer.name for layer in layers[-3:]] == ["res5.0", "res5.1", "res5.2"]
    for group in range(groups):
        points = sampling_points(layers, (140.0, 70.0), group=group)
        assert points.shape == (729, 2)
        expected = by_a_loop(backbone, image, (140.0, 70.0), group)
        np.testing.assert_allclose(points, expected, rtol=0, atol=1e-3)


def test_without_offsets_they_are_a_lattice():
    """3 x 3 twice, at the double stride, and 3 x 3: 11 x 11 places, 16 px apart."""
    layers = deformed_layers(backbone_of(*ON, std=0.0), torch.randn(IMAGE))
    points = sampling_points(layers, (32 * 3 + 0.5, 32 * 2 + 0.5))
    places, times = np.unique(points, axis=0, return_counts=True)
    x, y = (32 * k + 0.5 + 16 * np.arange(-5, 6) for k in (3, 2))
    assert {*map(tuple, places)} == {(a, b) for a in x for b in y}
    assert times.sum() == 729


@torch.enable_grad()
def test_points_are_where_the_layer_reads():
    """Of a single layer, the cells that its output depends on are those around its points."""
    backbone, seen = backbone_of(*options(1)), {}
    block = backbone.res4[3]
    assert isinstance(block, DeformableBottleneck)
    block.conv2.register_forward_hook(lambda _, inputs, output: seen.update(inputs=inputs))
    layers = deformed_layers(backbone, torch.randn(IMAGE))
    upto = next(i for i, layer in enumerate(layers) if layer.name == "res4.3")
    row, column = 4, 6
    points = sampling_points(layers[: upto + 1], (16 * column + 0.5, 16 * row + 0.5), depth=1)
    x, offset, _ = seen["inputs"]
    x = x.detach().requires_grad_()
    block.conv2(x, offset, None)[0, :, row, column].sum().backward()
    reached = {tuple(cell) for cell in (x.grad[0].abs().sum(0) > 0).nonzero().tolist()}
    height, width = x.shape[2:]
    around = {
        (int(np.floor(v)) + i, int(np.floor(u)) + j)
        for u, v in (points - 0.5) / 16
        for i in (0, 1)
        for j in (0, 1)
    }
    assert reached == {(r, c) for r, c in around if 0 <= r < height and 0 <= c < width}


def test_picture():
    """A panel for each place, with a cross there, dots and nothing else in the photo."""
    picture = np.full((*IMAGE[1:], 3), 90, dtype=np.uint8)
    layers = deformed_layers(backbone_of(*ON), torch.randn(IMAGE))
    places = {"background": (20.0, 20.0), "a small object": (120.0, 90.0), "a large": (200.0, 60.0)}
    drawn = draw_sampling_points(picture, layers, places)
    assert drawn.shape[1] > 3 * IMAGE[2] and drawn.dtype == np.uint8
    green = (drawn == (0, 158, 115)).all(2).any(0).nonzero()[0]
    assert len(np.split(green, (np.diff(green) > 30).nonzero()[0] + 1)) == 3
    assert (picture == 90).all()


def test_a_plain_resnet_has_none():
    with pytest.raises(InputError, match="DEFORM_ON_PER_STAGE"):
        deformed_layers(build_backbone(small_cfg()), torch.randn(IMAGE))
    opts = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]]
    layers = deformed_layers(build_backbone(small_cfg(*opts)), torch.randn(IMAGE))
    with pytest.raises(InputError, match="3 deformable convolutions have no last 4"):
        sampling_points(layers, (5, 5), depth=4)
