"""Pictures of query groups and of denoising queries."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import Denoising, OneToMany, QueryGroup
from detectron2_ddetr.visualization.inspection.ink import DARK
from detectron2_ddetr.visualization.inspection.noised_boxes import first_group, noised_boxes
from detectron2_ddetr.visualization.inspection.query_groups import (
    BAR,
    BLOCKED,
    COLORS,
    GAP,
    SEEN,
    query_groups,
)

from .modeling_cases import NUM_CLASSES
from .test_inspection import is_picture, view_of

TARGET = {
    "labels": torch.tensor([1, 2, 0]),
    "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.6, 0.5, 0.1, 0.3], [0.5, 0.5, 0.4, 0.4]]),
}


def test_mask():
    """Rows look: the denoising rows see those that detect, which do not see them."""
    groups = [QueryGroup(4, "_dn", frozenset({""}), 2), QueryGroup(3), OneToMany(5).group(5)]
    drawn = query_groups(groups)
    is_picture(drawn)
    cell = 600 // 12
    first = np.argwhere((drawn == BLOCKED).all(-1) | (drawn == SEEN).all(-1))
    legend = BAR + GAP  # the mask is what is left at the bottom
    side = 12 * cell
    mask = drawn[-side - legend :][legend : legend + side, legend : legend + side]
    assert len(first) > side * side / 2
    expected = np.zeros((12, 12), dtype=bool)
    for i in range(12):
        for j in range(12):
            if i < 4:
                expected[i, j] = (j < 4 and i // 2 == j // 2) or 4 <= j < 7
            elif i < 7:
                expected[i, j] = 4 <= j < 7
            else:
                expected[i, j] = j >= 7
    middles = mask[cell // 2 :: cell, cell // 2 :: cell]
    assert middles.shape[:2] == (12, 12)
    assert np.array_equal((middles == SEEN).all(-1), expected)
    assert np.array_equal((middles == BLOCKED).all(-1), ~expected)
    assert (drawn == COLORS[0]).all(-1).any() and (drawn == DARK).all(-1).any()


@pytest.mark.parametrize("negatives", [True, False])
def test_noised_boxes(negatives):
    """Of the first group; without noise the positives are the ground truth; the model goes on."""
    denoising = Denoising(NUM_CLASSES, 32, num_queries=9, box_noise=0.0, negatives=negatives)
    draws = denoising.draws
    parts, num_groups = first_group(denoising, TARGET)
    assert num_groups == 3 and len(parts) == 1 + negatives and denoising.draws is draws
    cx, cy, w, h = TARGET["boxes"].unbind(-1)
    corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
    for boxes in parts.values():
        assert_close(boxes, corners, rtol=0, atol=1e-5)
    view, state = view_of(index=1), torch.get_rng_state()
    is_picture(noised_boxes(view, denoising, TARGET))
    assert torch.equal(torch.get_rng_state(), state)


def test_negatives_lie_further():
    denoising = Denoising(NUM_CLASSES, 32, num_queries=3, box_noise=1.0)
    parts, _ = first_group(denoising, TARGET)
    near, far = ((boxes - first_group_without_noise()).abs().mean() for boxes in parts.values())
    assert far > 1.5 * near


def first_group_without_noise():
    parts, _ = first_group(Denoising(NUM_CLASSES, 32, num_queries=3, box_noise=0.0), TARGET)
    return parts["to be restored"]
