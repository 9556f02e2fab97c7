"""Boxes that a COCO json may have and hardly means: noticed before a model learns from them."""

import copy
import json
import logging

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr import check_coco_json
from detectron2_ddetr.errors import InputError

from .conftest import DATA
from .test_coco_dataset import HEIGHT, WIDTH, base, catalogs, each, images  # noqa: F401  (fixtures)


@pytest.fixture
def check(tmp_path, images, caplog):  # noqa: F811
    """Checks a content, or bytes; returns the lines that were logged."""

    def check_content(content, root=None):
        path = tmp_path / "data.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_coco_json(str(path), str(root or images))
        return [record.message for record in caplog.records]

    return check_content


def boxes(content, change):
    """Every box through change(x, y, w, h)."""
    each(content, "bbox", lambda a, i: change(*a["bbox"]))
    return content


def test_sound_boxes_are_not_suspected(check, caplog):
    assert check(base()) == []
    with caplog.at_level(logging.WARNING):
        for split in ("train", "val"):
            path = DATA / "annotations" / f"instances_{split}.json"
            check_coco_json(str(path), str(DATA / split))
    assert not caplog.records


def portrait(content):
    for record in content["images"]:
        record["width"], record["height"] = HEIGHT, WIDTH
    return boxes(content, lambda x, y, w, h: [y, x, h, w])


SUSPECT = {
    "corners": (lambda x, y, w, h: [x, y, x + w, y + h], "corners"),
    "centres": (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "centre"),
    "swapped": (lambda x, y, w, h: [y, x, h, w], "x and y swapped"),
    "larger image": (lambda x, y, w, h: [1.5 * v for v in (x, y, w, h)], "another image size"),
    "smaller image": (lambda x, y, w, h: [v / 2 for v in (x, y, w, h)], "smaller image"),
}


@pytest.mark.parametrize("kind", SUSPECT)
def test_boxes_of_another_format_are_warned_of(check, kind):
    """With the share of boxes that the rule is broken by."""
    change, words = SUSPECT[kind]
    content = base(per_image=10)
    if kind in ("swapped", "larger image"):  # some end up wholly outside, which is refused
        with pytest.raises(InputError, match=f"wholly outside .* stick out .*{words}"):
            check(boxes(copy.deepcopy(content), change))
        limits = (WIDTH, HEIGHT)
        content["annotations"] = [
            a for a in content["annotations"]
            if all(v < limit for v, limit in zip(change(*a["bbox"]), limits))
        ]  # fmt: skip
    lines = check(boxes(content, change))
    assert any(words in line and "%" in line for line in lines), lines
    outside = sum(
        x < -1 or y < -1 or x + w > WIDTH + 1 or y + h > HEIGHT + 1
        for x, y, w, h in (a["bbox"] for a in content["annotations"])
    )
    if outside:
        assert any(f"{outside} of {len(content['annotations'])} boxes" in line for line in lines)


def test_swapped_sides_of_portraits(check, tmp_path):
    for i in range(8):
        Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / f"{i}.png")
    assert check(portrait(base(per_image=10)), root=tmp_path) == []


@pytest.mark.parametrize("scale", [1, 0.5])
def test_fractions_are_refused(check, scale):
    content = boxes(
        base(), lambda x, y, w, h: [scale * x / WIDTH, scale * y / HEIGHT, w / WIDTH, h / HEIGHT]
    )
    with pytest.raises(InputError, match="data.json.*\n.*no coordinate of 24 boxes exceeds 1"):
        check(content)


def test_some_fractions_are_warned_of(check):
    content = base()
    for annotation in content["annotations"][:4]:
        annotation["bbox"] = [v / 100 for v in annotation["bbox"]]
    assert any("4 of 24 boxes lie within the first pixel" in line for line in check(content))


def test_area_beyond_the_box(check):
    content = base()
    for annotation in content["annotations"][:4]:
        annotation["area"] *= 9
    (line,) = check(content)
    assert "area exceeds width x height of the box in 4 of 24" in line


def test_a_box_far_beyond_its_image(check):
    """One alone, which no share of the others would show."""
    for box, count in ([-1e5, -1e5, 2e5, 2e5], 1), ([0, 0, WIDTH, HEIGHT * 2.5], 1):
        content = base()
        content["annotations"][4].update(bbox=box, area=box[2] * box[3])
        (line,) = check(content)
        assert "1 of 24 boxes end more than an image beyond" in line and "annotation 5 of" in line
    content["annotations"][4]["bbox"] = [0, 0, WIDTH * 1.9, HEIGHT * 1.9]
    assert check(content) == []


def test_areas_of_corners(check):
    """Corners of small boxes in the upper left all lie inside when taken as sides."""
    content = boxes(base(), lambda x, y, w, h: [x / 4, y / 4, w / 4 + 2, h / 4 + 2])
    each(content, "area", lambda a, i: a["bbox"][2] * a["bbox"][3])
    assert not any("area is that of" in line for line in check(content))
    lines = check(boxes(content, lambda x, y, w, h: [x, y, x + w, y + h]))
    assert any("area is that of corners [x0, y0, x1, y1] in 24 of 24" in line for line in lines)


def test_areas_that_are_mended_are_counted_once(check):
    content = base()
    for annotation in content["annotations"][:3]:
        del annotation["area"]
    for annotation, value in zip(content["annotations"][5:], (-1, "12", [3], True)):
        annotation["area"] = value
    lines = check(content)
    assert len(lines) == 2
    assert "area is missing in 3 annotations; evaluation takes width x height" in lines[0]
    assert "in 4 annotations (first: annotation 6 of image 5 (5.png): -1)" in lines[1]


def test_boxes_twice(check):
    content = base()
    content["annotations"] += [
        {**a, "id": 100 + a["id"]} for a in copy.deepcopy(content["annotations"])
    ]
    (line,) = check(content)
    assert "24 of 48 boxes repeat another" in line and "annotation 101" in line
    content = base()
    content["annotations"].append(content["annotations"][4])
    assert any("1 of 25 boxes repeat" in line for line in check(content))
    content = base()
    content["annotations"].append({**content["annotations"][4], "id": 99, "category_id": 2})
    assert check(content) == []  # one box, two classes


@pytest.mark.parametrize(("moved", "said"), [(0.25, True), (-0.5, True), (0.75, False)])
@pytest.mark.parametrize("place", range(4))
def test_boxes_twice_and_rounded(check, place, moved, said):
    """Tools round to halves or whole pixels; boxes of some pixels can be neighbours."""
    content = base()
    content["annotations"].append(copy.deepcopy(content["annotations"][4]) | {"id": 99})
    box = content["annotations"][-1]["bbox"]
    assert min(box[2:]) >= 10
    box[place] += moved
    assert any("1 of 25 boxes repeat" in line for line in check(content)) == said
    for annotation in (content["annotations"][4], content["annotations"][-1]):
        annotation["bbox"][2:] = [4.0, 4.0]
    content["annotations"][-1]["bbox"][place] += moved
    assert not any("repeat" in line for line in check(content))


def test_copies_are_counted_as_a_loop_counts_them(check):
    """Random boxes on a coarse grid, where many start at the same place."""
    rng = np.random.default_rng(0)
    content = base()
    image = content["images"][0]
    content["annotations"] = [
        {"id": n, "image_id": image["id"], "category_id": int(c), "bbox": [x, y, 20.0, 20.0]}
        | {"area": 400.0, "iscrowd": 0}
        for n, (c, x, y) in enumerate(
            zip(*rng.integers([[1], [0], [0]], [[3], [5], [5]], (3, 60)).tolist())
        )
    ]
    boxes = [(a["category_id"], *a["bbox"]) for a in content["annotations"]]
    copies = [i for i, box in enumerate(boxes) if box in boxes[:i]]
    (line,) = [line for line in check(content) if "repeat" in line]
    assert f"{len(copies)} of 60 boxes repeat another" in line
    assert f"and annotation {copies[0]})" in line
