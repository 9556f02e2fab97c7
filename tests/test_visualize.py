"""Pictures of predictions: where boxes and labels go, and which images are drawn."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr.toolbox import Boxes, BoxMode, Instances
from detectron2_ddetr.visualization import drawing, predictions, text
from detectron2_ddetr.visualization.choice import choose_images
from detectron2_ddetr.visualization.drawing import class_color, draw_boxes, style_of
from detectron2_ddetr.visualization.hits import match_to_ground_truth
from detectron2_ddetr.visualization.marks import Mark, sign
from detectron2_ddetr.visualization.predictions import predictions_beside_ground_truth


def test_box_is_outlined_in_the_color_of_its_class():
    image = np.full((300, 400, 3), 128, dtype=np.uint8)
    drawn = draw_boxes(image, np.array([[40.0, 100.0, 360.0, 220.0]]), [1])
    assert (image == 128).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    red, green, blue = class_color(1)
    for x, y in [(40, 200), (360, 200), (200, 220), (200, 100)]:  # left, right, bottom, top
        assert drawn[y, x].tolist() == [red, green, blue]
    changed = (drawn != image).any(axis=2)
    assert not changed[105:215, 45:355].any()  # inside
    assert not changed[230:].any() and not changed[:, 370:].any()  # below, right


def test_neighbouring_classes_have_different_colors():
    colors = np.array([class_color(label) for label in range(12)])
    distances = np.abs(colors[:, None] - colors[None]).sum(-1)
    assert distances[~np.eye(12, dtype=bool)].min() > 50
    assert class_color(3) == class_color(3)


def test_score_and_name_make_the_label_longer():
    image = np.full((300, 400, 3), 128, dtype=np.uint8)
    box = np.array([[100.0, 100.0, 300.0, 200.0]])

    def width(**options):
        label = (draw_boxes(image, box, [0], **options) != image).any(axis=2)[:96]
        return label.any(axis=0).sum()

    assert width() < width(class_names=["cat"]) < width(scores=[0.5], class_names=["cat"])


def test_labels_do_not_cover_each_other():
    """Four boxes with the same corner: without avoidance, one label would be seen."""
    image = np.full((400, 500, 3), 128, dtype=np.uint8)
    boxes = np.array([[100.0, 100.0, 150 + 60 * i, 140 + 50 * i] for i in range(4)])
    areas = []
    for i in range(4):
        alone = draw_boxes(image, boxes[i : i + 1], [i])
        together = draw_boxes(image, boxes, [0, 1, 2, 3])
        near = [
            (np.abs(drawn.astype(int) - (0.15 * 128 + 0.85 * np.array(class_color(i)))) <= 1)
            .all(axis=2)
            .sum()
            for drawn in (alone, together)
        ]
        areas.append(near)
    assert all(together > 0.9 * alone > 0 for alone, together in areas)


@pytest.mark.parametrize("shape", [(20, 30, 3), (2000, 3000, 3)])
def test_any_image_size_and_boxes_at_the_border(shape):
    image = np.zeros(shape, dtype=np.uint8)
    height, width = shape[:2]
    boxes = np.array([[-5.0, -5.0, width + 9, height + 9], [width - 2, height - 2, width, height]])
    drawn = draw_boxes(image, boxes, [0, 1], [0.99, 0.5], class_names=["a long name", "b"])
    assert drawn.shape == shape and drawn.any()
    assert not draw_boxes(image, np.zeros((0, 4)), []).any()


def test_mosaic(tmp_path):
    images_with_results = []
    for name, (height, width) in {"wide.png": (60, 120), "high.png": (100, 50)}.items():
        Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / name)
        box = {"bbox": [5, 8, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        dataset_dict = {
            "file_name": str(tmp_path / name),
            "annotations": [{**box, "iscrowd": 0}, {**box, "bbox": [30, 1, 9, 9], "iscrowd": 1}],
        }
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor([[5.0, 8, 25, 38], [30, 1, 39, 10]]))
        instances.scores = torch.tensor([0.9, 0.3])
        instances.pred_classes = torch.tensor([1, 1])
        images_with_results.append((dataset_dict, instances))
    path = tmp_path / "pictures" / "mosaic.png"
    predictions_beside_ground_truth(
        images_with_results, ["cat", "dog"], str(path), score_threshold=0.5
    )
    mosaic = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    # Panels of 800 x 400 and 400 x 800 (width x height), two in a row, under their captions.
    assert 1600 < mosaic.shape[1] < 1700 and 1200 < mosaic.shape[0] < 1450

    def columns(color):
        return np.flatnonzero((mosaic == color).all(axis=2)[60:480].any(axis=0))

    left, right = columns(class_color(0)), columns(class_color(1))
    # x 5..25 of 120 px are 33..167 of 800; the crowd region and the low score are not drawn.
    assert left.min() - 14 == pytest.approx(33, abs=4)
    assert left.max() - 14 == pytest.approx(167, abs=4)
    assert right.min() - 828 == pytest.approx(33, abs=4)
    assert right.max() - 828 == pytest.approx(167, abs=4)

    with pytest.raises(ValueError, match="no image to draw"):
        predictions_beside_ground_truth([], [], str(path), score_threshold=0.5)


def test_a_crowded_photo_is_not_buried():
    """Of 400 boxes only some get a tag; every class does, and no tag hides another or a sign."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 740, (400, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (400, 2))], axis=1)
    labels = [0] * 396 + [1, 2, 3, 4]
    image = np.full((800, 800, 3), 128, dtype=np.uint8)
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_draw_tag", lambda c, text, tag, *_: written.append((text, tag)))
        draw_boxes(image, boxes, labels, class_names=["many", "a", "b", "c", "d"])
    assert 10 < len(written) < 100
    assert {"a", "b", "c", "d", "many"} >= {name for name, _ in written} >= {"many", "a"}
    area = np.zeros((800, 800), dtype=int)
    for _, (x1, y1, x2, y2) in written:
        area[y1:y2, x1:x2] += 1
    assert area.max() == 1 and area.mean() <= drawing.MAX_TAGGED


def test_a_tag_does_not_hide_a_small_object():
    image = np.full((400, 400, 3), 128, dtype=np.uint8)
    small = np.array([100.0, 82, 112, 94])  # where the tag of the large one would be
    boxes = np.array([[90.0, 100, 300, 300], small])
    drawn = draw_boxes(image, boxes, [0, 1], class_names=["large", ""])
    x1, y1, x2, y2 = (small + (4, 4, -4, -4)).astype(int)
    assert (drawn[y1:y2, x1:x2] == 128).all()


def comparison(tmp_path, pred, scores, num_gt=1, labelled=True):
    """A dataset dict with `num_gt` boxes of class 0 in a row, and predictions of class 0."""
    Image.new("RGB", (800, 800), (10, 20, 30)).save(tmp_path / "a.png")
    annotations = [
        {"bbox": [10 + 20 * i, 300, 100, 90], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        for i in range(num_gt)
    ]
    dataset_dict = {"file_name": str(tmp_path / "a.png"), "annotations": annotations}
    if not labelled:
        del dataset_dict["annotations"]
    instances = Instances((800, 800))
    instances.pred_boxes = Boxes(torch.tensor(pred, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.zeros(len(scores), dtype=torch.long)
    return dataset_dict, instances


@pytest.fixture
def said(monkeypatch):
    """Captions and the (style, marks) of the two panels of each row."""
    captions, panels = [], []
    lines, boxes = predictions.text_lines, predictions.draw_boxes
    monkeypatch.setattr(
        predictions, "text_lines", lambda t, *a, **k: captions.append(t) or lines(t, *a, **k)
    )
    monkeypatch.setattr(
        predictions,
        "draw_boxes",
        lambda *a, **k: panels.append((k["style"], k["marks"])) or boxes(*a, **k),
    )
    return captions, panels


@pytest.mark.parametrize("num_gt", [1, 21, 30])
def test_one_style_in_a_row_and_marks(tmp_path, said, num_gt):
    """A hit, one elsewhere, one too low; the ground truth may be crowded alone."""
    pred = [[10, 300, 110, 390], [600, 600, 700, 700], [30, 300, 130, 390]]
    pair = comparison(tmp_path, pred, [0.9, 0.8, 0.1], num_gt)
    predictions_beside_ground_truth([pair], ["x"], str(tmp_path / "m.png"), score_threshold=0.5)
    captions, ((left, left_marks), (right, right_marks)) = said
    assert left == right == style_of((800, 800), num_gt)
    assert left_marks == [Mark.HIT] + [Mark.MISSED] * (num_gt - 1)
    assert right_marks == [Mark.HIT, Mark.FALSE_ALARM]
    assert f"ground truth ({num_gt}: {num_gt - 1} missed)" in captions
    assert "predictions, score >= 0.5 (2: 1 hit, 1 false)" in captions


@pytest.mark.parametrize("scores, words", [([0.123], "the best is 0.12"), ([], "nothing is")])
def test_nothing_passes_the_threshold(tmp_path, said, scores, words):
    pair = comparison(tmp_path, [[1.0, 2, 30, 40]] * len(scores), scores)
    predictions_beside_ground_truth([pair], ["x"], str(tmp_path / "m.png"), score_threshold=0.5)
    assert any(f"score >= 0.5 (none; {words}" in caption for caption in said[0])


def test_without_annotations_nothing_is_right_or_wrong(tmp_path, said):
    pair = comparison(tmp_path, [[10, 300, 110, 390]], [0.9], labelled=False)
    predictions_beside_ground_truth([pair], ["x"], str(tmp_path / "m.png"), score_threshold=0.5)
    assert said[1][1][1] == [None] and "ground truth (none is given)" in said[0]


def test_signs_differ_without_their_hue():
    """In lightness (ITU-R BT.601), as every eye sees it, and in shape."""
    signs = [sign(mark, 18).astype(float) for mark in Mark]
    grey = [s[..., :3] @ (0.299, 0.587, 0.114) * s[..., 3] / 255 for s in signs]
    for i in range(3):
        for j in range(i):
            assert (np.abs(grey[i] - grey[j]) > 40).mean() > 0.15


def dicts(*labels):
    return [{"n": n, "annotations": [{"category_id": c} for c in x]} for n, x in enumerate(labels)]


@pytest.mark.parametrize(
    "labels, count, expected",
    [
        ([[0], [0], [0], [0], [1], [2]], 3, {0, 4, 5}),  # the first of each
        ([[0], [1], [2], [0, 1, 2]], 1, {3}),
        ([[0], [], [0], []], 3, {0, 2, 1}),  # the empty ones last
        ([[0] * 50, [0], [0]], 2, {1, 2}),  # crowded ones last
        ([[0] * 50 + [1], [0], [0]], 2, {0, 1}),  # but for the class 1
        ([[c for c in range(30)], [0], [1]], 2, {0, 1}),  # all classes only with the crowded one
        ([[], []], 5, {0, 1}),
    ],
)
def test_images_that_show_all_classes(labels, count, expected):
    chosen = choose_images(dicts(*labels), count)
    assert {d["n"] for d in chosen} == expected and len(chosen) == len(expected)


def test_images_without_labels_are_the_first():
    assert choose_images([{"n": n} for n in range(9)], 3) == [{"n": n} for n in range(3)]


def test_hits_are_those_of_pycocotools():
    coco, evaluation = pytest.importorskip("pycocotools.coco"), None
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    for _ in range(30):
        n, t = rng.integers(0, 9), rng.integers(1, 13)
        gt = np.concatenate([rng.integers(0, 5, (n, 2)) * 4, rng.integers(4, 20, (n, 2))], 1)
        pred = np.concatenate([rng.integers(0, 5, (t, 2)) * 4, rng.integers(4, 20, (t, 2))], 1)
        gt_labels, pred_labels = rng.integers(0, 2, n), rng.integers(0, 2, t)
        crowd, scores = rng.random(n) < 0.3, rng.permutation(t) / t
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 0}, {"id": 1}],
            "annotations": [
                {"id": i + 1, "image_id": 1, "category_id": int(c), "bbox": b.tolist(),
                 "area": int(b[2] * b[3]), "iscrowd": int(k)}
                for i, (b, c, k) in enumerate(zip(gt, gt_labels, crowd))
            ],
        }  # fmt: skip
        truth.createIndex()
        results = coco.COCO()
        results.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 0}, {"id": 1}],
            "annotations": [
                {"id": i + 1, "image_id": 1, "category_id": int(c), "bbox": b.tolist(),
                 "area": int(b[2] * b[3]), "score": float(s)}
                for i, (b, c, s) in enumerate(zip(pred, pred_labels, scores))
            ],
        }  # fmt: skip
        results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        hit, on_crowd, found = np.zeros(t, bool), np.zeros(t, bool), np.zeros(n, bool)
        for image in filter(None, evaluation.evalImgs):
            dt = np.array(image["dtIds"]) - 1
            matched = image["dtMatches"][0].astype(int) if len(dt) else np.zeros(0, int)
            ignored = image["dtIgnore"][0].astype(bool) if len(dt) else np.zeros(0, bool)
            hit[dt[(matched > 0) & ~ignored]] = True
            on_crowd[dt[(matched > 0) & ignored]] = True
            found[matched[(matched > 0) & ~ignored] - 1] = True
        xyxy = [np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1) for b in (pred, gt)]
        ours = match_to_ground_truth(xyxy[0], pred_labels, scores, xyxy[1], gt_labels, crowd)
        for value, reference in zip(ours, (hit, on_crowd, found)):
            np.testing.assert_array_equal(value, reference)


@pytest.fixture
def only_dejavu(monkeypatch):
    """A machine with no font but matplotlib's own."""
    first = next(text._font_files())
    monkeypatch.setattr(text, "_font_files", lambda: iter([first]))
    monkeypatch.setattr(text, "_FONT_OF", {})
    text.readable_names.cache_clear()
    yield
    text.readable_names.cache_clear()


def test_names_in_other_scripts(only_dejavu, caplog):
    names = ("эритроцит", "白血球", "Größe\n1", "", "λ≥2", "赤血球")
    assert text.readable_names(names) == ("эритроцит", "1", "Größe 1", "3", "λ≥2", "5")
    text.readable_names(names)
    (record,) = caplog.records
    assert "3 of 6 class names" not in record.message  # that one is empty is no lack of a font
    assert "2 of 6 class names" in record.message and "白血球" in record.message


@pytest.mark.parametrize("word", ["клетка", "κύτταρο", "Größe", "cell"])
def test_letters_differ_from_each_other_and_from_a_missing_one(word):
    masks = [text.text_mask(letter, 40) for letter in dict.fromkeys(word)]
    font = text._font(next(text._font_files()), 40)
    missing = font.getmask("\U0010fffd").getbbox()
    for i, mask in enumerate(masks):
        assert mask.max() > 0.9
        assert not any(np.array_equal(mask, other) for other in masks[:i])
        rows, columns = np.nonzero(mask)
        box = (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert box != (missing[2] - missing[0], missing[3] - missing[1])


def test_a_class_without_a_name(tmp_path):
    pair = comparison(tmp_path, [[10, 300, 110, 390]], [0.9])
    pair[1].pred_classes[:] = 7
    predictions_beside_ground_truth([pair], [], str(tmp_path / "m.png"), score_threshold=0.5)
    assert (tmp_path / "m.png").is_file()
