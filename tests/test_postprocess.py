"""The best (query, class) pairs."""

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import sigmoid_topk, softmax_best


def test_by_hand():
    """Parity J74: flat over query and class; one query twice; (x0, y0, x1, y1), not clipped."""
    logits = torch.tensor([[[-3.0, 2.0, 1.0], [0.5, -1.0, -2.0]], [[0.0, -1, -2], [-3, -4, 5]]])
    boxes = torch.tensor([[[0.5, 0.4, 0.2, 0.6], [0.1, 0.9, 0.4, 0.3]]]).repeat(2, 1, 1)
    scores, labels, corners = sigmoid_topk(logits, boxes, 3)
    assert_close(scores, torch.tensor([[2.0, 1.0, 0.5], [5, 0, -1]]).sigmoid())
    assert labels.tolist() == [[1, 2, 0], [2, 0, 1]]
    first, second = [0.4, 0.1, 0.6, 0.7], [-0.1, 0.75, 0.3, 1.05]
    assert_close(corners[0], torch.tensor([first, first, second]))
    assert_close(corners[1], torch.tensor([second, first, first]))


def test_fewer_pairs_than_wanted():
    """Parity J76: all Q * K pairs, each once."""
    scores, labels, boxes = sigmoid_topk(torch.randn(2, 4, 3), torch.rand(2, 4, 4), 100)
    assert scores.shape == labels.shape == (2, 12) and boxes.shape == (2, 12, 4)
    assert labels.sort().values.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 2
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_half():
    """Scores and boxes are float32 whatever the network computed in."""
    logits, boxes = torch.randn(1, 5, 2).bfloat16(), torch.rand(1, 5, 4).bfloat16()
    scores, _, corners = sigmoid_topk(logits, boxes, 4)
    assert scores.dtype == corners.dtype == torch.float32
    assert_close(scores[0], logits.float().sigmoid().flatten().sort(descending=True).values[:4])


def test_softmax_by_hand():
    """DETR's: one class of each query, never "no object", the best query first."""
    probability = torch.tensor([[0.2, 0.1, 0.7], [0.3, 0.6, 0.1], [0.05, 0.0005, 0.9495]])
    boxes = torch.tensor([[0.5, 0.4, 0.2, 0.6], [0.1, 0.9, 0.4, 0.3], [0.5, 0.5, 1.0, 1.0]])
    scores, labels, corners = softmax_best(probability.log()[None] + 3, boxes[None], 2)
    assert_close(scores, torch.tensor([[0.6, 0.2]]))
    assert labels.tolist() == [[1, 0]]
    expected = torch.tensor([[-0.1, 0.75, 0.3, 1.05], [0.4, 0.1, 0.6, 0.7]])
    assert_close(corners[0], expected)
    assert softmax_best(probability[None], boxes[None], 100)[0].shape == (1, 3)
    with pytest.raises(ValueError, match="at least 1"):
        softmax_best(probability[None], boxes[None], 0)
