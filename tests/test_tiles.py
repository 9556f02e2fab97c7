"""Large images in tiles give every object once, also where a tile's border cuts it."""

import numpy as np
import pytest
import torch

from detectron2_ddetr import DeformableDETRDatasetMapper, Predictor
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.modeling.tiles import cut_by_window, one_of_each, tile_windows
from detectron2_ddetr.toolbox import Boxes, Instances


@pytest.mark.parametrize("size", [(640, 640), (1000, 3000), (50, 10_000), (641, 640), (1, 1)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_cover_the_image(size, overlap):
    """Each pixel lies in one; neighbours share what they are to; none reaches beyond."""
    height, width = size
    windows = tile_windows(height, width, 640, overlap)
    assert len(set(windows)) == len(windows)
    covered = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in windows:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(640, width), min(640, height))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        assert all(b - a <= 640 * (1 - overlap) for a, b in zip(starts, starts[1:]))
    if max(size) <= 640:
        assert windows == [(0, 0, width, height)]


class SeesColours(torch.nn.Module):
    """
    Finds what is painted in one colour: blue is its class, and its number is red and green.

    As a detector does, it overlooks what is small beside the image that it is given, and finds the
    visible part of what is cut.
    """

    def __init__(self, smallest=0.0, sees_parts=True):
        super().__init__()
        self.smallest = smallest
        self.sees_parts = sees_parts

    def forward(self, batch):
        return [{"instances": self.find(x["image"].numpy())} for x in batch]

    def find(self, image):
        rows = []
        numbers = image[0].astype(int) * 256 + image[1]
        for number in sorted(set(np.unique(numbers).tolist()) - {0}):
            y, x = np.nonzero(numbers == number)
            box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
            if max(box[2] - box[0], box[3] - box[1]) >= self.smallest * max(image.shape[1:]):
                # The larger the part, the surer.
                score = 0.5 + 0.49 * len(x) / (len(x) + 500) - number * 1e-5
                rows.append((score, image[2, y[0], x[0]], *box))
        rows = torch.tensor(sorted(rows, reverse=True), dtype=torch.float32).reshape(-1, 6)
        found = Instances(image.shape[1:])
        found.scores, found.pred_classes = rows[:, 0], rows[:, 1].long()
        found.pred_boxes = Boxes(rows[:, 2:])
        return found


def predictor(**options):
    mapper = DeformableDETRDatasetMapper(False, augmentations=[], image_format="RGB")
    model = SeesColours(options.pop("smallest", 0.0))
    return Predictor(model=model, mapper=mapper, array_format="RGB", **options)


def painted(boxes, labels, size):
    image = np.zeros((*size, 3), np.uint8)
    for number, ((x0, y0, x1, y1), label) in enumerate(zip(boxes, labels), start=1):
        image[y0:y1, x0:x1] = (number // 256, number % 256, label)
    return image


def rows(instances):
    boxes, labels = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist()
    return sorted((label, *map(round, box)) for label, box in zip(labels, boxes))


def at_the_borders(size, side=200, overlap=0.25):
    """Boxes that begin, end, and lie across each border of each tile."""
    boxes = []
    windows = tile_windows(*size, side, overlap)
    for place in sorted({edge for window in windows for edge in (window[0], window[2])}):
        for row, (before, after) in enumerate(
            ((20, 0), (0, 20), (10, 10), (1, 19), (19, 1), (40, 6))
        ):
            x0, x1 = place - before, place + after
            if x0 >= 0 and x1 <= size[1]:
                boxes.append((x0, 5 + 30 * row, x1, 5 + 30 * row + 22))
    for place in sorted({edge for window in windows for edge in (window[1], window[3])}):
        for column, (before, after) in enumerate(((20, 0), (0, 20), (10, 10), (1, 19), (19, 1))):
            y0, y1 = place - before, place + after
            x0 = size[1] - 160 + 30 * column
            if y0 >= 200 and y1 <= size[0]:
                boxes.append((x0, y0, x0 + 22, y1))
    return boxes


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("smallest", [0.0, 0.08])
def test_every_object_comes_back_once(smallest, batch_size):
    """With `smallest`, the whole image alone would show none of them."""
    size = (610, 750)
    boxes = at_the_borders(size)
    labels = [i % 2 for i in range(len(boxes))]
    image = painted(boxes, labels, size)
    whole = predictor()(image)
    expected = rows(whole)
    assert len(expected) == len(boxes) > 40
    tiled = predictor(tiles=200, smallest=smallest, batch_size=batch_size)(image)
    assert rows(tiled) == expected
    assert tiled.image_size == size
    assert (tiled.scores.diff() <= 0).all()
    assert len(predictor(smallest=0.08)(image)) == 0


def test_objects_larger_than_a_tile_come_from_the_whole_image():
    """Their parts, one in each of many tiles, are not objects."""
    boxes = [(30, 40, 700, 560), (100, 100, 130, 500), (400, 0, 420, 610), (660, 200, 690, 230)]
    image = painted(boxes, [1, 1, 0, 1], (610, 750))
    expected = rows(predictor()(image))
    assert len(expected) == 4
    assert rows(predictor(tiles=200)(image)) == expected


def test_random_scenes():
    """Of a hundred objects that may hide parts of each other, in several scenes."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        corners = rng.integers(0, (700, 560), (100, 2))
        boxes = np.concatenate([corners, corners + rng.integers(8, 45, (100, 2))], 1).tolist()
        image = painted(boxes, rng.integers(0, 3, 100).tolist(), (610, 750))
        whole, tiled = (rows(predictor(tiles=t)(image)) for t in (None, 200))
        assert len(whole) > 60 and set(whole) <= set(tiled)
        # What others hide in part may look otherwise where a border cuts it.
        assert len(tiled) <= 1.05 * len(whole)


def test_a_small_image_is_looked_at_once():
    seen = []
    made = predictor(tiles=640)
    made.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    image = painted([(3, 4, 30, 20)], [1], (100, 640))
    assert rows(made(image)) == [(1, 3, 4, 30, 20)] and seen == [1]


def merged(*detections):
    """(box, score, window, cut) each, all of one class -> which are left."""
    boxes, scores, windows, cut = (list(column) for column in zip(*detections))
    columns = torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return one_of_each(*columns, labels, torch.tensor(windows), torch.tensor(cut)).tolist()


def test_what_is_one_object():
    a, near, other = (0, 0, 10, 10), (1, 0, 11, 10), (5, 0, 15, 10)  # IoU 0.82, 0.33
    assert merged((a, 0.9, 0, False), (near, 0.8, 1, False)) == [0]
    assert merged((a, 0.8, 0, False), (near, 0.9, 1, False)) == [1]
    assert merged((a, 0.9, 0, False), (other, 0.8, 1, False)) == [0, 1]
    # Two of one window are two, however near; each stands for one of the other window.
    crowd = [(a, 0.9, 0, False), (near, 0.8, 0, False)]
    assert merged(*crowd) == [0, 1]
    assert merged(*crowd, (a, 0.7, 1, False), (near, 0.85, 1, False)) == [0, 3]
    # One window sees both, the other only the second.
    assert merged(*crowd, (near, 0.7, 1, False)) == [0, 1]


def test_a_part_belongs_to_the_whole():
    whole, part, beyond = (0, 0, 30, 10), (0, 0, 8, 10), (24, 0, 44, 10)
    assert merged((whole, 0.5, 0, False), (part, 0.9, 1, True)) == [0]
    assert merged((whole, 0.5, 0, False), (beyond, 0.9, 1, True)) == [1, 0]
    assert merged((whole, 0.5, 0, False), (part, 0.9, 1, False)) == [1, 0]
    # A box that means nothing takes nothing with it.
    for cut in (part, whole):
        assert merged((whole, 0.02, 0, False), (cut, 0.9, 1, True)) == [1, 0]


def test_classes_are_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 2)
    arguments = torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), torch.tensor([0, 1])
    cut = torch.tensor([False, True])
    assert one_of_each(boxes, *arguments, cut).tolist() == [0, 1]
    empty = torch.zeros(0, dtype=torch.int64)
    assert one_of_each(torch.zeros(0, 4), torch.zeros(0), empty, empty, empty.bool()).tolist() == []


def test_what_counts_as_cut():
    """At a border inside the image, not at that of the image."""
    window, height, width = (100, 0, 300, 200), 200, 400
    boxes = torch.tensor(
        [
            [100.0, 50, 150, 90],  # left border
            [250, 50, 300, 90],  # right
            [150, 0, 180, 200],  # top and bottom of the image
            [104, 50, 296, 90],  # near enough to be sure that it is not
            [101, 50, 296, 90],  # too near
        ]
    )
    assert cut_by_window(boxes, window, height, width).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": 8}, "tiles must be at least 32 px, got 8"),
        ({"tiles": 640, "tile_overlap": 1}, "tile_overlap must be from 0 to 0.9, got 1"),
    ],
)
def test_tiles_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        predictor(**options)
