"""The names of images in a COCO json: what is wrong with them is said once, with its remedy."""

import re

import pytest

from detectron2_ddetr import check_coco_json
from detectron2_ddetr.errors import InputError, MissingFileError

from .test_coco_dataset import base, catalogs, images  # noqa: F401  (fixtures)
from .test_odd_boxes import check  # noqa: F401  (a fixture)

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
def test_file_names_are_diagnosed(check, kind, tmp_path):  # noqa: F811
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


def test_a_folder_that_is_not_there(check, tmp_path):  # noqa: F811
    with pytest.raises(MissingFileError, match="the folder of its images, .*gone, does not exist"):
        check(base(), root=tmp_path / "gone")
    with pytest.raises(MissingFileError, match="is a folder; correct its path"):
        check_coco_json(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("name", ["0.png", "./0.png"])
def test_a_file_in_two_image_records(check, name):  # noqa: F811
    content = base()
    content["images"].append({**content["images"][0], "id": 77, "file_name": name})
    (line,) = check(content)
    assert "1 file named by more than one image record (image 0 (0.png), image 77" in line
