"""The pictures of `ddetr inspect`: that what they draw is what was recorded, in the right place."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import DINOTransformer, box_cxcywh_to_xyxy, capture, ms_deform_attn
from detectron2_ddetr.visualization.inspection.ink import GREEN, level_color
from detectron2_ddetr.visualization.inspection.panels import (
    Panel,
    heat,
    picture,
    sheet_of,
    window_around,
)
from detectron2_ddetr.visualization.inspection.proposals import chosen, proposals
from detectron2_ddetr.visualization.inspection.receptive_field import receptive_field, spread
from detectron2_ddetr.visualization.inspection.sampling_points import (
    decoder_points,
    draw_points,
    encoder_points,
    near,
    said_of,
)
from detectron2_ddetr.visualization.inspection.trajectory import centres, trajectory
from detectron2_ddetr.visualization.inspection.view import Points, View

from .modeling_cases import HEADS, NUM_QUERIES, randomise, small_features, small_head

#: (h, w) of the network's input; the second image is padded on both sides.
SIZES = ((72, 104), (61, 83))
STRIDES = (8, 16, 32, 64)


def view_of(name="refine", sizes=SIZES, index=1, scale=2, **kwargs):
    """The file of each image is `scale` times as large as the input that was made of it."""
    levels = HEADS[name].get("num_levels", 4)
    head = randomise(small_head(**HEADS[name], **kwargs), std=0.3).eval()
    with capture(head) as captured, torch.no_grad():
        head(*small_features(levels, sizes))
    height, width = sizes[index]
    image = np.random.default_rng(0).integers(0, 256, (scale * height, scale * width, 3))
    return View(image.astype(np.uint8), captured, index)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind, query", [("encoder", 40), ("decoder", 3)])
def test_points_lie_where_the_padded_level_was_read(index, kind, query):
    """In the file, though the level is of the padded batch: by counting cells, one off at most."""
    view = view_of(index=index)
    points = view.points(kind, 1, query)
    record = view.captured.attention[kind, 1]
    locations = record.sampling_locations[index, query].double()  # (M, L, P, 2)
    shape = locations.shape[:3]
    xy = points.xy.reshape(*shape, 2)
    np.testing.assert_array_equal(points.levels.reshape(shape)[0, :, 0], range(4))
    weights = record.attention_weights[index, query]
    assert_close(torch.from_numpy(points.weights).float(), weights.flatten() / 4)  # heads
    assert points.weights.sum() == pytest.approx(1.0, rel=1e-5)
    moved = []
    for level, stride in enumerate(STRIDES):
        height, width = view.shapes[level]
        # Of the input, then of the file, which is twice as large.
        expected = 2 * stride * locations[:, level].numpy() * (width, height)
        error = np.abs(xy[:, level] - expected)
        inside = (np.abs(expected / np.array(view.image.shape[1::-1]) - 0.5) <= 0.5).all(-1)
        assert (error[inside] <= 2 * stride).all()
        moved.append(np.abs(xy[:, level] - expected[..., ::-1]).max())
    assert max(moved) > 40  # with x for y it would fail


def test_a_point_of_a_box_lies_where_the_box_says():
    """The frame of points is that of boxes: offsets of nothing are the middle of the box."""
    view = view_of()
    for layer in (1, 2):
        boxes = view.boxes(layer - 1)  # refined: what the layer looks around
        for query in range(NUM_QUERIES):
            reference = view.reference("decoder", layer, query)
            middle = (boxes[query, :2] + boxes[query, 2:]) / 2
            np.testing.assert_allclose(reference[:2], middle, rtol=1e-3, atol=1e-2)
            size = boxes[query, 2:] - boxes[query, :2]
            np.testing.assert_allclose(reference[2:], size, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("index", [0, 1])
def test_the_cell_of_a_pixel(index):
    """Its centre is at most half a cell away; the corners of the image are in corner cells."""
    view = view_of(index=index)
    height, width = view.image.shape[:2]
    for level in range(4):
        columns, rows = view.valid_cells(level)
        start = sum(h * w for h, w in view.shapes[:level])
        last = start + (rows - 1) * view.shapes[level][1] + columns - 1
        assert view.cell_at(0, 0, level) == start
        assert view.cell_at(width - 1, height - 1, level) == last
        assert view.cell_at(width + 9, height + 9, level) == last
        for x, y in ((3, 100), (width - 2, 5), (90.5, 60.5)):
            reference = view.reference("encoder", 0, view.cell_at(x, y, level))
            assert abs(reference[0] - x) <= width / columns / 2 + 1e-3
            assert abs(reference[1] - y) <= height / rows / 2 + 1e-3


def test_what_is_drawn_of_points():
    """Each at its place, in the colour of its level; the largest has the largest area."""
    sheet = sheet_of(np.full((300, 450, 3), 128, np.uint8))
    xy = np.array([(60.0, 200.0), (400.0, 50.0), (200.0, 260.0)])
    points = Points(xy, np.array([0.7, 0.2, 0.1]), np.array([0, 2, 1]), np.array([225.0, 100.0]))
    draw_points(sheet, points)
    assert sheet.scale == 2 and sheet.pixels.shape == (600, 900, 3)
    areas = []
    for (x, y), level in zip(xy, points.levels):
        assert tuple(sheet.pixels[int(2 * y), int(2 * x)]) == level_color(level)
        areas.append((sheet.pixels == level_color(level)).all(-1).sum())
    assert tuple(sheet.pixels[200, 450]) == GREEN
    assert areas[0] > areas[1] > areas[2] > 0
    changed = (sheet.pixels != 128).any(-1).nonzero()
    assert changed[1].max() < 830 and changed[0].max() < 550


def test_what_lies_outside_is_said():
    view = view_of()
    height, width = view.image.shape[:2]
    xy = np.array([(1.0, 1.0), (-1.0, 5.0), (5.0, height + 1.0), (width - 1.0, height - 1.0)])
    points = Points(xy, np.array([0.5, 0.2, 0.05, 0.25]), np.zeros(4, int), xy[0])
    assert said_of(points, view) == "4 points, 2 outside the image (25 % of the weight)"
    assert said_of(points._replace(xy=np.abs(xy) % 20), view) == "4 points"
    np.testing.assert_array_equal(near(points, 0.7), xy[[0, 3]])
    np.testing.assert_array_equal(near(points, 0.5), xy[[0]])


def test_a_window_shows_what_it_is_for():
    rng = np.random.default_rng(0)
    shape = (480, 640, 3)
    for count in (1, 2, 30):
        for _ in range(30):
            places = rng.random((count, 2)) * (640, 480) * rng.random()
            x1, y1, x2, y2 = window_around(places, shape)
            assert 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 480
            assert abs((x2 - x1) / (y2 - y1) - 640 / 480) < 0.05
            assert (places >= (x1 - 1, y1 - 1)).all() and (places <= (x2 + 1, y2 + 1)).all()
    for shape in ((1, 1), (3, 2), (5, 900)):
        for _ in range(30):
            x1, y1, x2, y2 = window_around(rng.random((2, 2)) * shape[::-1], shape)
            assert 0 <= x1 < x2 <= shape[1] and 0 <= y1 < y2 <= shape[0]
    shape = (480, 640, 3)
    assert window_around(np.array([(-90.0, 10.0), (900.0, 20.0)]), shape) == (0, 0, 640, 480)
    sheet = sheet_of(np.zeros(shape, np.uint8), 2, (100, 60, 260, 180))
    np.testing.assert_allclose(sheet.at(np.array([100, 60, 260, 180])), [0, 0, 600, 450])


def test_spread_is_the_transposed_attention():
    """As the operator itself says, which is given values that tell the cells apart."""
    view = view_of()
    record = view.captured.attention["encoder", 1]
    count = record.sampling_locations.shape[1]
    heads = record.sampling_locations.shape[2]
    values = torch.eye(count)[None, :, None].repeat(2, 1, heads, 1)
    values = values.masked_fill(view.captured.memory.padding_mask[..., None, None], 0.0)
    matrix = ms_deform_attn(
        values,
        torch.tensor(view.shapes),
        record.sampling_locations,
        record.attention_weights,
    )
    matrix = matrix[view.index].unflatten(-1, (heads, count)).mean(1).double()  # (query, cell)
    cells = torch.rand(count, dtype=torch.float64) * (torch.arange(count) % 7 == 0)
    expected = matrix.T @ cells
    assert_close(spread(view, 1, cells), expected, rtol=1e-4, atol=1e-6)
    assert (expected > 0).sum() > 20


def test_nothing_reaches_a_cell_that_reads_outside():
    view = view_of()
    for layer in (0, 1):
        view.captured.attention["encoder", layer].sampling_locations.fill_(5.0)
    assert not spread(view, 1, torch.ones(sum(h * w for h, w in view.shapes)).double()).any()
    assert is_picture(receptive_field(view, (3, 3)))


def test_the_way_of_a_query_ends_at_its_box():
    view = view_of()
    boxes = np.stack([view.boxes(layer)[5] for layer in range(3)])
    way = centres(view, 5, boxes)
    assert way.shape == (4, 2)
    np.testing.assert_allclose(way[0], view.reference("decoder", 0, 5)[:2])
    np.testing.assert_allclose(way[-1], (boxes[-1, :2] + boxes[-1, 2:]) / 2)


def test_the_proposals_are_what_the_decoder_starts_from():
    view = view_of("two_stage")
    scores, boxes, levels = chosen(view)
    references = box_cxcywh_to_xyxy(view.captured.reference_points(0))[view.index]
    height, width = view.image.shape[:2]
    expected = references.double().numpy() * (width, height, width, height)
    np.testing.assert_allclose(boxes, expected, rtol=1e-4, atol=1e-3)
    assert (np.diff(scores) <= 0).all() and len(levels) == NUM_QUERIES
    logits = view.captured.outputs["enc_outputs"]["pred_logits"][view.index, :, 0]
    ends = np.cumsum([0, *(h * w for h, w in view.shapes)])
    for score, level in zip(scores, levels):
        own = logits[ends[level] : ends[level + 1]].sigmoid().numpy()
        assert np.isclose(own, score).any()
    # The first cell of a level, the last of another.
    view.captured.selected[view.index, :2] = torch.tensor([ends[1], ends[1] - 1])
    assert chosen(view)[2][:2].tolist() == [1, 0]
    with pytest.raises(ValueError, match="not a two-stage one"):
        proposals(view_of("refine"))


def test_proposals_of_an_encoder_that_tells_classes():
    """DINO's: the best class counts, and only what was selected is there."""
    sizes = {"n_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2, "dropout": 0.0}
    transformer = DINOTransformer(NUM_QUERIES, d_model=32, dim_feedforward=24, **sizes)
    view = view_of("two_stage", transformer=transformer)
    scores, boxes, levels = chosen(view)
    logits = view.captured.outputs["interm_outputs"]["pred_logits"][view.index]
    np.testing.assert_allclose(scores, logits.sigmoid().max(-1).values)
    assert (np.diff(scores) <= 0).all() and boxes.shape == (NUM_QUERIES, 4)
    references = box_cxcywh_to_xyxy(view.captured.reference_points(0))[view.index]
    height, width = view.image.shape[:2]
    expected = references.double().numpy() * (width, height, width, height)
    np.testing.assert_allclose(boxes, expected, rtol=1e-4, atol=1e-3)
    assert is_picture(proposals(view))


def test_detections_of_a_view():
    view = view_of()
    found = view.detections()
    probability = view.captured.outputs["pred_logits"][view.index].sigmoid()
    assert sorted(d.query for d in found) == list(range(NUM_QUERIES))
    for detection in found:
        assert detection.score == pytest.approx(float(probability[detection.query].max()))
        assert detection.label == int(probability[detection.query].argmax())
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert len(view.detections(found[3].score)) == 4
    named = view._replace(class_names=("a", "b", "c", "d", "e"))
    assert named.say(found[0]) == f"{'abcde'[found[0].label]} {found[0].score:.2f}"


def test_heat_shows_the_hottest_place():
    values = np.zeros((24, 36))
    values[4, 30] = 2.0
    drawn = heat(np.full((240, 360, 3), 90, np.uint8), values).astype(int)
    assert (drawn[200, 50] == drawn[100, 100]).all()
    y, x = np.unravel_index(np.abs(drawn - drawn[200, 50]).sum(-1).argmax(), (240, 360))
    assert abs(y - 45) <= 6 and abs(x - 305) <= 6


def is_picture(drawn):
    """RGB with a title above the panels and white around them."""
    assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
    assert drawn[:30].min() < 100 and (drawn[:, :5] == 255).all() and (drawn[-5:] == 255).all()
    assert drawn.shape[0] < 3000 and drawn.shape[1] < 2000
    return True


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("sizes", [SIZES, ((40, 104), (104, 33)), ((33, 104), (9, 15))])
def test_every_picture_of_every_model(name, sizes):
    """Padded, in landscape and portrait, and smaller than a cell of the coarsest level."""
    view = view_of(name, sizes)
    assert is_picture(encoder_points(view, (7, 12), [1]))
    assert is_picture(encoder_points(view, (0, 0), [0, 1], level=len(view.shapes) - 1))
    assert is_picture(decoder_points(view, 2, [2]))
    assert is_picture(decoder_points(view, 0, [0, 1, 2]))
    assert is_picture(trajectory(view, [4, 1]))
    assert is_picture(receptive_field(view, (3, 3)))
    if name == "two_stage":
        assert is_picture(proposals(view))


def test_panels_do_not_overlap():
    """Each lies whole on the white sheet, in its row and column, under its caption."""
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    panels = [
        Panel("a caption that is so long that it needs several lines of its own " * 3, image)
        for image in (np.full((60, 330, 3), c, np.uint8) for c in colors)
    ]
    drawn = picture("title", panels, notes=["a note"])
    places = []
    for color in colors:
        rows, columns = (drawn == color).all(-1).nonzero()
        assert len(rows) == 60 * 330
        places.append((columns.min(), rows.min()))
    assert places[0][1] == places[1][1] < places[2][1] and places[0][0] == places[2][0]
    assert places[1][0] >= places[0][0] + 330
