"""Sine encodings against the numbers of the official code and closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detectron2_ddetr.modeling import PositionEmbeddingSine, box_position_encoding


def make_mask(valid=(3, 5), size=(4, 6)):
    mask = torch.ones(1, *size, dtype=torch.bool)
    mask[:, : valid[0], : valid[1]] = False
    return mask


def feature(radians, channel, num_feats, temperature=10000):
    phase = radians / temperature ** (2 * (channel // 2) / num_feats)
    return math.cos(phase) if channel % 2 else math.sin(phase)


def test_official_numbers():
    """Parity B11: 3 x 5 valid cells of 4 x 6."""
    encoded = PositionEmbeddingSine()(make_mask())[0]
    assert encoded.shape == (256, 4, 6)
    for cell, y_features, x_features in [
        ((0, 0), (0.866025, 0.5, 0.787558, 0.616241), (0.587785, 0.809017, 0.517649, 0.855593)),
        (
            (2, 4),
            (-0.866026, 0.499999, -0.984162, -0.177270),
            (-0.587786, 0.809017, -0.983024, 0.183478),
        ),
    ]:
        at_cell = encoded[(slice(None), *cell)]
        assert_close(at_cell[:4], torch.tensor(y_features), rtol=0, atol=2e-6)
        assert_close(at_cell[128:132], torch.tensor(x_features), rtol=0, atol=2e-6)
    assert encoded[:, :3, :5].double().sum().item() == pytest.approx(1905.4563, abs=1e-3)


SETTINGS = pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 20.0, "offset": 0.0}, {"scale": 1.0, "eps": 0.5}],
    ids=["official", "dino", "other"],
)


@SETTINGS
def test_loop(settings):
    """Parity B11: y before x, sine before cosine, cell centres; every setting has its effect."""
    height, width, feats = 3, 5, 6
    encoded = PositionEmbeddingSine(feats, **settings)(make_mask())[0]
    full = {"scale": 2 * math.pi, "offset": -0.5, "eps": 1e-6, "temperature": 10000.0, **settings}
    for i in range(height):
        for j in range(width):
            for k in range(2 * feats):
                index, count = (i, height) if k < feats else (j, width)
                radians = (index + 1 + full["offset"]) / (count + full["eps"]) * full["scale"]
                expected = feature(radians, k % feats, feats, full["temperature"])
                assert encoded[k, i, j].item() == pytest.approx(expected, abs=1e-5)


@SETTINGS
@pytest.mark.parametrize("size", [(5, 3), (1, 7), (4, 4)])
@pytest.mark.parametrize("padding", [[False, False], [False, True]])
def test_maps_of_one_number(settings, size, padding):
    """The same numbers, of as many sines as there are rows and columns."""
    encoding = PositionEmbeddingSine(6, **settings)
    mask = torch.tensor(padding)[:, None, None].expand(2, *size)
    assert_close(encoding(mask), encoding(mask.contiguous()), rtol=0, atol=1e-6)


def test_maps_of_one_number_take_few_sines(monkeypatch):
    counts = []
    sine = Tensor.sin
    monkeypatch.setattr(Tensor, "sin", lambda x: counts.append(x.numel()) or sine(x))
    PositionEmbeddingSine(6)(torch.zeros(1, 1, 1, dtype=torch.bool).expand(1, 5, 4))
    assert counts == [5 * 3, 4 * 3]


def test_padding_invariance():
    """Parity B11: valid cells do not see how much padding surrounds them."""
    encoding = PositionEmbeddingSine(8)
    alone = encoding(torch.zeros(1, 5, 3, dtype=torch.bool))
    padded = encoding(torch.cat([make_mask((5, 3), (7, 9)), make_mask((7, 9), (7, 9))]))
    assert_close(padded[:1, :, :5, :3], alone)
    assert (padded[1, :, :5, :3] - alone[0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype):
    """Parity B12: finite where a whole row is padding, float32 and unchanged under autocast."""
    encoding = PositionEmbeddingSine(4)
    expected = encoding(make_mask())
    assert expected.isfinite().all()
    with torch.autocast("cpu", dtype):
        out = encoding(make_mask())
        boxes = box_position_encoding(torch.rand(2, 4).to(dtype), 4)
    assert out.dtype == boxes.dtype == torch.float32
    assert torch.equal(out, expected)


def test_box_official_numbers():
    """Parity G51: the encoding of the box whose logits are (0, 1, -1, 2)."""
    encoded = box_position_encoding(torch.tensor([0.0, 1.0, -1.0, 2.0]).sigmoid())
    assert encoded.shape == (512,)
    index = [0, 1, 2, 3, 128, 129, 256, 257, 384, 385]
    expected = [-8.7e-8, -1, 0.408751, -0.912646, -0.992926, -0.118732, 0.992926, -0.118732,
                -0.680888, 0.732388]  # fmt: skip
    assert_close(encoded[index], torch.tensor(expected), rtol=0, atol=2e-6)


def test_box_loop():
    """Parity G51: cx, cy, w, h in this order, each with its own frequencies."""
    boxes = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    encoded = box_position_encoding(boxes, 6)
    for n in range(2):
        for q in range(3):
            for k in range(24):
                radians = boxes[n, q, k // 6].item() * 2 * math.pi
                expected = feature(radians, k % 6, 6)
                assert encoded[n, q, k].item() == pytest.approx(expected, abs=1e-5)
