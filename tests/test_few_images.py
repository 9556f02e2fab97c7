"""Layers that do not learn see a few images at a time: the same maps, of smaller batches."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2_ddetr.backbones import few_images
from detectron2_ddetr.backbones.efficientnet_lite import EfficientNetLite0
from detectron2_ddetr.backbones.few_images import few_images_at_a_time


@pytest.fixture(autouse=True)
def numbers(monkeypatch):
    """Two images of 3x4x5, and not quite a third."""
    monkeypatch.setattr(few_images, "_NUMBERS", 179)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    made.batches = []
    made.register_forward_pre_hook(lambda module, inputs: module.batches.append(inputs[0].shape[0]))
    return made


def images(number):
    return torch.randn(number, 3, 4, 5, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("number, batches", [(5, [2, 2, 1]), (4, [2, 2]), (2, [2]), (0, [0])])
def test_maps_of_every_image(layers, number, batches):
    layers.requires_grad_(False)
    found = few_images_at_a_time(layers, images(number))
    assert layers.batches == batches
    assert found.shape == (number, 4, 2, 3)
    for result, image in zip(found, images(number)):
        assert_close(result, layers(image[None])[0])


def test_an_image_of_more_numbers_is_one(layers):
    layers.requires_grad_(False)
    assert few_images_at_a_time(layers, torch.zeros(3, 3, 40, 50)).shape == (3, 4, 38, 48)
    assert layers.batches == [1, 1, 1]


def test_what_learns_sees_all_images(layers):
    few_images_at_a_time(layers, images(5)).sum().backward()
    assert layers.batches == [5] and all(p.grad is not None for p in layers.parameters())
    layers[0].bias.requires_grad_(False)
    few_images_at_a_time(layers, images(5))  # its weight learns
    layers.requires_grad_(False)
    x = images(5).requires_grad_()
    few_images_at_a_time(layers, x).sum().backward()
    assert layers.batches == [5, 5, 5] and x.grad.any()
    with torch.no_grad():
        few_images_at_a_time(layers.requires_grad_(), images(5))
    assert layers.batches == [5, 5, 5, 2, 2, 1]


def test_a_traced_program_takes_any_batch(layers):
    layers.requires_grad_(False)
    traced = torch.jit.trace(lambda x: few_images_at_a_time(layers, x), images(5))
    assert layers.batches[0] == 5
    assert_close(traced(images(7)), layers(images(7)))


def test_the_frozen_maps_of_efficientnet():
    """Frozen maps come of an image at a time here, those that learn of the batch."""
    torch.manual_seed(0)
    backbone = EfficientNetLite0(freeze_at=3)
    batches = {}
    for name in backbone.output_shape():
        backbone.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: batches.setdefault(name, []).append(len(inputs[0]))
        )
    x = torch.randn(3, 3, 64, 96)
    found = backbone(x)
    of_images = 3 * [1]
    assert batches == {"stride2": of_images, "stride4": of_images, "stride8": of_images,
                       "stride16": [3], "stride32": [3]}  # fmt: skip
    for k, image in enumerate(x):
        for name, expected in backbone(image[None]).items():
            scale = expected.abs().max().item()
            assert_close(found[name][k], expected[0], rtol=1e-4, atol=1e-4 * scale)
