"""The picture of deformed keys: everything is where the network has it."""

import numpy as np
import pytest
import torch

from detectron2_ddetr.errors import InputError
from detectron2_ddetr.visualization import deformed_keys as picture
from detectron2_ddetr.visualization.deformed_keys import draw_deformed_keys

from .dat_cases import tiny

SIZE = (96, 128)  # px; in stage 2 the map has 6x8 cells
PANEL = picture._PANEL


@pytest.fixture
def backbone():
    """Whose keys are all at the middle of the right border, but for one that gets all attention."""
    backbone = tiny().eval()
    attention = backbone.stages[2].attns[0]
    weights = attention.weights

    def of_one_key(x):
        found, deformation = weights(x)
        found = torch.zeros_like(found)
        found[..., 1, 2] = 1.0
        deformation.positions[:] = torch.tensor([0.0, 1.0])
        deformation.positions[:, :, 1, 2] = torch.tensor([-0.6, -1.0])  # row 1, column 0
        return found, deformation

    attention.weights = of_one_key
    return backbone


def inside(drawn, row, column):
    """The image within a panel."""
    height = drawn.shape[0]
    top = 14 + len(picture.text_lines("x", PANEL, 15))
    scaled = round(SIZE[0] * PANEL / SIZE[1])
    top += row * (top + scaled)
    assert top + scaled < height
    left = 14 + column * (PANEL + 14)
    return drawn[top : top + scaled, left : left + PANEL].astype(int)


def middle(panel, color):
    """(x, y) px of the image, the mean of where a panel is about of that colour."""
    y, x = np.nonzero((abs(panel - color) < 60).all(-1))
    return (np.array([x.mean(), y.mean()]) + 0.5) * SIZE[1] / PANEL


def test_places(backbone):
    image = np.full((*SIZE, 3), 255, dtype=np.uint8)
    drawn = draw_deformed_keys(image, torch.ones(3, *SIZE), backbone, [(40, 70), (100, 10)])
    orange, blue = picture._COLORS
    cells = [(2, 4), (6, 0)]
    for column, number in ((2, 0), (3, 1)):
        panel = inside(drawn, 1, column)
        star = np.array(cells[number]) * 16 + 8
        if number == 0:  # in blue there is only the star of the other query
            assert middle(panel, blue) == pytest.approx(np.array(cells[1]) * 16 + 8, abs=1)
        disc = panel.copy()
        x, y = np.round(star * PANEL / SIZE[1]).astype(int)
        disc[max(0, y - 16) : y + 16, max(0, x - 16) : x + 16] = 255
        pale = 0.65 * np.array((orange, blue)[number]) + 0.35 * 255
        assert middle(disc, pale) == pytest.approx((8, 24), abs=1.5)
    moved = inside(drawn, 0, 3)
    assert middle(moved[:, PANEL // 2 :], picture._SHARED)[1] == pytest.approx(48, abs=2)


def test_grid_without_offsets():
    """Half a pixel in of the map of 6x8 cells, x before y."""
    backbone = tiny().eval()
    torch.nn.init.zeros_(backbone.stages[2].attns[0].conv_offset[3].weight)
    weights, grid, moved = picture._attended(torch.zeros(3, *SIZE), backbone, 2, 1)
    assert weights.shape == (2, 6, 8, 6, 8) and weights.sum((3, 4)) == pytest.approx(1, abs=1e-5)
    expected = [((j + 0.5) / 8 * 7, (i + 0.5) / 6 * 5) for i in range(6) for j in range(8)]
    np.testing.assert_allclose(grid, expected, atol=1e-5)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize(
    "queries, options, says",
    [
        ([(128, 5)], {}, "within 128x96 px"),
        ([], {}, "one or two queries"),
        ([(5, 5)], {"stage": 0}, "stage 0 has no deformable attention"),
        ([(5, 5)], {"group": 2}, "a group 2: choose others"),
    ],
)
def test_what_cannot_be_drawn(queries, options, says):
    with pytest.raises(InputError, match=says):
        image, pixels = np.zeros((*SIZE, 3), np.uint8), torch.zeros(3, *SIZE)
        draw_deformed_keys(image, pixels, tiny().eval(), queries, **options)
