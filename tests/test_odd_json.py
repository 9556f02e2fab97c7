"""Json of any bytes, with any value anywhere: read as it is meant, or refused by its place."""

import json

import pytest

from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import MetadataCatalog

from .test_coco_dataset import base, catalogs, images  # noqa: F401  (fixtures)
from .test_odd_boxes import check  # noqa: F401  (a fixture)


def test_a_name_that_cannot_be_written(check):  # noqa: F811
    content = base()
    content["categories"][1]["name"] = "b\ud800"
    with pytest.raises(InputError, match="category 2: its name .* half of a character"):
        check(content)


def test_two_categories_of_one_name(check):  # noqa: F811
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
def test_a_key_twice(check, key):  # noqa: F811
    text = json.dumps(base()).replace(*TWICE[key])
    with pytest.raises(InputError, match=f"data.json: the key '{key}' occurs twice in one object"):
        check(text.encode())


NUMBERS = ["-1e308", "1e308", "1e400", "9" * 400, "-" + "9" * 400, "9" * 5000, "NaN", "-Infinity"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n[:8] + str(len(n)))
@pytest.mark.parametrize("place", range(4))
def test_numbers_beyond_all_images(check, number, place):  # noqa: F811
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
def test_no_number_anywhere_ends_in_another_error(check, field, number, kind):  # noqa: F811
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
def test_brackets(check, kind):  # noqa: F811
    with pytest.raises(InputError, match="data.json: brackets are nested too deeply"):
        check(BRACKETS[kind])


def test_nesting_that_can_be_parsed(check):  # noqa: F811
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
def test_other_encodings_are_named(check, encoding):  # noqa: F811
    content = base()
    content["categories"][0]["name"] = "жёлтый" if encoding == "cp1251" else "naïve"
    with pytest.raises(InputError, match="not utf-8 text .byte 0x.. at place .*save it in UTF-8"):
        check(json.dumps(content, ensure_ascii=False).encode(encoding))


def test_numbers_too_long_for_python(check):  # noqa: F811
    text = json.dumps(base()).replace('"bbox": [', f'"bbox": [{"7" * 5000}, ', 1)
    with pytest.raises(InputError, match="data.json: has a number of more than 4300 digits"):
        check(text.encode())


@pytest.mark.parametrize("content", [b"", b"   ", b"null", b"3", b"\xff\xfe", b"\0\0\0\0", b"[1,"])
def test_files_of_nothing(check, content):  # noqa: F811
    with pytest.raises(InputError, match="data.json: ") as error:
        check(content)
    assert ("the file is empty" in str(error.value)) == (content.strip() == b"")
