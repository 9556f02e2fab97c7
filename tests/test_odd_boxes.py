"""Files that are json and COCO, and wrong: noticed before a model learns from them."""

import copy
import json
import logging
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr import check_coco_json, check_datasets
from detectron2_ddetr.errors import InputError, MissingFileError
from detectron2_ddetr.toolbox import BoxMode, DatasetCatalog, MetadataCatalog

from .conftest import DATA
from .test_coco_dataset import (  # noqa: F401  (fixtures)
    HEIGHT,
    WIDTH,
    base,
    catalogs,
    config,
    each,
    images,
    write,
)


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


@pytest.mark.parametrize("name", ["0.png", "./0.png"])
def test_a_file_in_two_image_records(check, name):
    content = base()
    content["images"].append({**content["images"][0], "id": 77, "file_name": name})
    (line,) = check(content)
    assert "1 file named by more than one image record (image 0 (0.png), image 77" in line


def test_a_name_that_cannot_be_written(check):
    content = base()
    content["categories"][1]["name"] = "b\ud800"
    with pytest.raises(InputError, match="category 2: its name .* half of a character"):
        check(content)


def test_what_a_file_holds_is_summed_up(tmp_path, images):  # noqa: F811
    path, images = tmp_path / "data.json", shutil.copytree(images, tmp_path / "images")

    def summary(content, **options):
        path.write_text(json.dumps(content))
        return check_coco_json(str(path), str(images), **options).splitlines()

    lines = summary(base())
    assert [line.split() for line in lines[:3]] == [
        ["row", "id", "boxes", "name"], ["0", "1", "12", "red"], ["1", "2", "12", "green"]
    ]  # fmt: skip
    assert f"{path}: 8 images, 24 boxes" in " ".join(" ".join(lines).split())
    assert lines[-1] == "no problem found"
    content = base()
    del content["annotations"][0]["area"]
    assert summary(content)[-1] == "can be used, but see the 1 warning above"
    for content in ({**base(), "annotations": []}, {"images": base()["images"]}):
        lines = summary(content, needs_annotations=False)
        assert "8 images, 0 boxes, so that it can be predicted on, not trained on" in "".join(
            line.strip() + " " for line in lines
        )
    (images / "3.png").write_text("no image")
    with pytest.raises(InputError, match="1 of 8 images cannot be used"):
        summary(base())


def test_two_categories_of_one_name(check):
    content = base()
    content["categories"][1]["name"] = "red"
    with pytest.raises(InputError, match="categories 1 and 2: both have the name 'red'"):
        check(content)


TWICE = {
    "annotations": ('{"images": ', '{"annotations": [], "images": '),
    "categories": ('{"images": ', '{"categories": [], "images": '),
    "bbox": ('"bbox": ', '"bbox": [1, 2, 3, 4], "bbox": '),
    "id": ('"id": ', '"id": 5, "id": '),
}


@pytest.mark.parametrize("key", TWICE)
def test_a_key_twice(check, key):
    text = json.dumps(base()).replace(*TWICE[key])
    with pytest.raises(InputError, match=f"data.json: the key '{key}' occurs twice in one object"):
        check(text.encode())


NUMBERS = ["-1e308", "1e308", "1e400", "9" * 400, "-" + "9" * 400, "9" * 5000, "NaN", "-Infinity"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n[:8] + str(len(n)))
@pytest.mark.parametrize("place", range(4))
def test_numbers_beyond_all_images(check, number, place):
    content = base()
    content["annotations"][2]["bbox"][place] = "HERE"
    text = json.dumps(content).replace('"HERE"', number)
    with pytest.raises(InputError, match="data.json") as error:
        check(text.encode())
    assert len(str(error.value)) < 700
    assert len(number) > 4300 or "annotation 3 of image 2 (2.png)" in str(error.value)


@pytest.mark.parametrize("field", ["id", "image_id", "category_id", "area", "iscrowd", "ignore"])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n[:8] + str(len(n)))
@pytest.mark.parametrize("kind", ["annotations", "images", "categories"])
def test_no_number_anywhere_ends_in_another_error(check, field, number, kind):
    content = base()
    content[kind][1][field] = "HERE"
    try:
        check(json.dumps(content).replace('"HERE"', number).encode())
    except InputError as error:
        assert "data.json" in str(error) and len(str(error)) < 900


VALUES = [None, True, "", "7", 1.5, [], [1], {}, {"a": 1}, "\ud800", -1, 0]


@pytest.mark.parametrize("kind", ["annotations", "images", "categories"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_no_value_anywhere_ends_in_another_error(
    check, kind, value, tmp_path, images  # noqa: F811
):
    """Any field of any record: used, mended, or refused by name."""
    from detectron2_ddetr.data.coco_dataset import CocoDataset

    for key in {*base()[kind][0], "ignore", "segmentation", "width"}:
        content = base()
        content[kind][1][key] = value
        try:
            check(content)
        except InputError as error:
            assert "data.json: " in str(error)
            str(error).encode()
        else:
            dataset = CocoDataset("fuzz", str(tmp_path / "data.json"), str(images))
            dataset.number_classes(None)
            assert len(dataset()) == len(content["images"])
            MetadataCatalog.pop("fuzz")


BRACKETS = {
    "lists": b"[" * 200_000,
    "objects": b'{"a":' * 200_000,
    "closed": b"[" * 200_000 + b"]" * 200_000,
    "in a box": b'{"images": [], "annotations": [{"bbox": ' + b"[" * 200_000 + b"]" * 200_000,
}


@pytest.mark.parametrize("kind", BRACKETS)
def test_brackets(check, kind):
    with pytest.raises(InputError, match="data.json: brackets are nested too deeply"):
        check(BRACKETS[kind])


def test_nesting_that_can_be_parsed(check):
    content = base()
    content["annotations"][1]["bbox"] = json.loads("[" * 400 + "]" * 400)
    with pytest.raises(InputError, match="annotation 2 .*bbox must be 4 numbers"):
        check(content)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_encodings(check, encoding, tmp_path, images):  # noqa: F811
    content = base()
    content["categories"][0]["name"] = "красный"
    check(json.dumps(content, ensure_ascii=False).encode(encoding))
    # pycocotools, which reads UTF-8, gets a copy.
    from detectron2_ddetr import register_coco_json

    register_coco_json("encoded", str(tmp_path / "data.json"), str(images))
    with open(MetadataCatalog.get("encoded").json_file, encoding="utf-8") as file:
        assert json.load(file)["categories"][0]["name"] == "красный"


@pytest.mark.parametrize("encoding", ["cp1251", "latin-1"])
def test_other_encodings_are_named(check, encoding):
    content = base()
    content["categories"][0]["name"] = "жёлтый" if encoding == "cp1251" else "naïve"
    with pytest.raises(InputError, match="not utf-8 text .byte 0x.. at place .*save it in UTF-8"):
        check(json.dumps(content, ensure_ascii=False).encode(encoding))


def test_numbers_too_long_for_python(check):
    text = json.dumps(base()).replace('"bbox": [', f'"bbox": [{"7" * 5000}, ', 1)
    with pytest.raises(InputError, match="data.json: has a number of more than 4300 digits"):
        check(text.encode())


@pytest.mark.parametrize("content", [b"", b"   ", b"null", b"3", b"\xff\xfe", b"\0\0\0\0", b"[1,"])
def test_files_of_nothing(check, content):
    with pytest.raises(InputError, match="data.json: ") as error:
        check(content)
    assert ("the file is empty" in str(error.value)) == (content.strip() == b"")


NAMES = {
    "backslash": ("sub\\{}", "has backslashes, as on Windows; with '/'"),
    "Windows path": ("C:\\data\\{}", "backslashes, as on Windows, and folders that are not there"),
    "codes": ("sub/a%20{}", "has codes such as %20"),
    "other folder": ("elsewhere/{}", "has folders that are not there; without them"),
    "address": ("https://host/bucket/x{}", "is an address .URL.; download"),
    "backslash, not there": ("a\\b\\x{}", "has backslashes, as on Windows; use '/'"),
    "capitals": ("sub/A {}", "but there is a 0.png, with other capitals; write it so"),
    "ending": ("{0[0]}.jpg", "but there is 0.png, with another ending; write the names of"),
    "not there": ("x{}", "no such file in .*; correct the image root"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_file_names_are_diagnosed(check, kind, tmp_path):
    """One line for all of a kind, with their number."""
    pattern, message = NAMES[kind]
    (tmp_path / "sub").mkdir()
    content = base()
    for record in content["images"]:
        for name in (
            record["file_name"],
            f"sub/{record['file_name']}",
            f"sub/a {record['id']}.png",
        ):
            (tmp_path / name).touch()
        record["file_name"] = pattern.format(record["file_name"])
    with pytest.raises(InputError, match="8 problems found") as error:
        check(content, root=tmp_path)
    first, line = str(error.value).split("\n")
    assert re.search(message, line), line
    assert content["images"][0]["file_name"] in line and "7 more: image 1 (" in line


def test_a_folder_that_is_not_there(check, tmp_path):
    with pytest.raises(MissingFileError, match="the folder of its images, .*gone, does not exist"):
        check(base(), root=tmp_path / "gone")
    with pytest.raises(MissingFileError, match="is a folder; correct its path"):
        check_coco_json(str(tmp_path), str(tmp_path))


def own(**changes):
    annotation = {"category_id": 1, "bbox": [1, 2, 30, 40], "bbox_mode": BoxMode.XYXY_ABS}
    annotation = {k: v for k, v in {**annotation, **changes}.items() if v is not ...}
    return [{"file_name": "x.png", "image_id": 7, "annotations": [annotation]}]


OWN = {
    "class -1": (own(category_id=-1), r"category_id must be an integer from 0 to 2 \(a, b, c\)"),
    "class K": (own(category_id=3), "from 0 to 2 .*got 3; number the classes from 0 on"),
    "class of text": (own(category_id="1"), "got '1'"),
    "no class": (own(category_id=...), "got None"),
    "class 1.0": (own(category_id=1.0), "got 1.0"),
    "no box": (own(bbox=...), "bbox must be 4 finite numbers, got None"),
    "NaN": (own(bbox=[1, 2, 3, float("nan")]), "bbox must be 4 finite numbers"),
    "no mode": (own(bbox_mode=...), "bbox_mode must be BoxMode.XYXY_ABS or XYWH_ABS, got None"),
    "turned corners": (own(bbox=[30, 2, 1, 40]), "has a negative width or height"),
    "no annotations": ([{"file_name": "x.png"}], "key 'annotations' is missing"),
    "no file": ([{"annotations": []}], "item 0: it must be a dict with 'file_name'"),
    "nothing": ([], "must return a list of dicts, not empty"),
    "a dict": ({}, "must return a list of dicts"),
}


@pytest.mark.parametrize("kind", OWN)
def test_data_sets_of_a_function(kind):
    dicts, message = OWN[kind]
    DatasetCatalog.register("own", lambda: dicts)
    MetadataCatalog.get("own").set(thing_classes=["a", "b", "c"])
    with pytest.raises(InputError, match=message) as error:
        check_datasets(config(["own"], [], 3))
    assert "data set 'own'" in str(error.value)
    DatasetCatalog.remove("own")
    DatasetCatalog.register("own", own)
    check_datasets(config(["own"], ["own"], 3))


def test_classes_of_functions_are_compared_too():
    for name, classes in (("own_a", ["a", "b"]), ("own_b", ["b", "a"])):
        DatasetCatalog.register(name, own)
        MetadataCatalog.get(name).set(thing_classes=classes)
    check_datasets(config(["own_a"], ["own_a"], 2))
    with pytest.raises(InputError, match="'own_b' has classes b, a, data set 'own_a' has a, b"):
        check_datasets(config(["own_a"], ["own_b"], 2))
