"""One data set in the layouts of COCO, YOLO and Pascal VOC is the same data set."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from detectron2_ddetr import cli
from detectron2_ddetr.data.folders import as_coco, layout_of
from detectron2_ddetr.errors import InputError, MissingFileError

from .conftest import DATA

WIDTH, HEIGHT = 90, 60
NAMES = ["ant", "bee", "cat"]  # in alphabetical order, which is VOC's
#: File name, and (class, x, y, width, height) in px of each box; odd images are for "val".
IMAGES = {
    "a0.png": [("bee", 3, 5, 20, 11), ("ant", 40, 30, 50, 30)],
    "b1.png": [("cat", 0, 0, 90, 60)],
    "c2.png": [],
    "d3.png": [("ant", 10, 20, 7, 9)],
}


def split_of(file):
    return ("train", "val")[int(file[1]) % 2]


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def coco_content(files):
    images = [
        {"id": i, "file_name": f, "width": WIDTH, "height": HEIGHT} for i, f in enumerate(files)
    ]
    annotations = [
        {"image_id": i, "category_id": NAMES.index(n), "bbox": list(box), "iscrowd": 0, "area": 1.0}
        for i, f in enumerate(files)
        for n, *box in IMAGES[f]
    ]
    annotations = [{"id": k, **a} for k, a in enumerate(annotations, start=1)]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco(root):
    """COCO's own layout."""
    for split in ("train", "val"):
        files = [f for f in IMAGES if split_of(f) == split]
        for file in files:
            save_image(root / f"{split}2017" / file)
        (root / "annotations").mkdir(exist_ok=True)
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(coco_content(files)))


def export(root):
    """A json beside the images of each split; the second is called "valid"."""
    for split, name in (("train", "train"), ("val", "valid")):
        files = [f for f in IMAGES if split_of(f) == split]
        for file in files:
            save_image(root / name / file)
        (root / name / "_annotations.coco.json").write_text(json.dumps(coco_content(files)))


def yolo(root):
    content = {"train": "../train/images", "val": "valid/images", "nc": 3, "names": NAMES}
    for file, boxes in IMAGES.items():
        folder = root / {"train": "train", "val": "valid"}[split_of(file)]
        save_image(folder / "images" / file)
        lines = []
        for name, x, y, w, h in boxes:
            centre = f"{(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT}"
            lines.append(f"{NAMES.index(name)} {centre} {w / WIDTH} {h / HEIGHT}")
        if lines:  # an image without boxes has no file
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / f"{file[:-4]}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(yaml.safe_dump(content))


def xml(file, boxes, difficult=0):
    objects = "".join(
        f"<object><name>{n}</name><difficult>{difficult}</difficult><bndbox><xmin>{x + 1}</xmin>"
        f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for n, x, y, w, h in boxes
    )
    return f"<annotation><filename>{file}</filename>{objects}</annotation>"


def voc(root):
    lists = {"train": [], "val": []}
    (root / "Annotations").mkdir(parents=True)
    for file, boxes in IMAGES.items():
        save_image(root / "JPEGImages" / file)
        (root / "Annotations" / f"{file[:-4]}.xml").write_text(xml(file, boxes))
        lists[split_of(file)].append(file[:-4])
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, stems in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))


LAYOUTS = {"COCO": coco, "export": export, "YOLO": yolo, "Pascal VOC": voc}


def boxes_of(json_file):
    """{file name: sorted (class name, box)} of a json."""
    content = json.loads(open(json_file).read())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"].split("/")[-1] for i in content["images"]}
    assert all((i["width"], i["height"]) == (WIDTH, HEIGHT) for i in content["images"])
    found = {file: [] for file in files.values()}
    for a in content["annotations"]:
        found[files[a["image_id"]]].append((names[a["category_id"]], *np.round(a["bbox"], 6)))
    return {file: sorted(boxes) for file, boxes in found.items()}, [*names.values()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_and_says_the_same(tmp_path, name, capsys):
    root = tmp_path / "data"
    root.mkdir()
    LAYOUTS[name](root)
    layout = layout_of(str(root))
    assert (layout.name, layout.splits) == (name.replace("export", "COCO"), ["train", "val"])
    for split in ("train", "val"):
        json_file, images = as_coco(str(root), split, str(tmp_path / "out"))
        expected = {f: sorted(b) for f, b in IMAGES.items() if split_of(f) == split}
        assert boxes_of(json_file) == (expected, NAMES)
    cli.main(["check", str(root)])
    assert capsys.readouterr().out.count("2 images, ") == 2


def test_a_whole_folder_is_one_set(tmp_path):
    voc(tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")
    assert layout_of(str(tmp_path)).splits == []
    json_file, _ = as_coco(str(tmp_path), "val", str(tmp_path / "out"))
    assert boxes_of(json_file)[0] == {f: sorted(b) for f, b in IMAGES.items()}


def test_difficult_boxes_of_voc_are_crowds(tmp_path):
    voc(tmp_path)
    (tmp_path / "Annotations" / "a0.xml").write_text(xml("a0.png", IMAGES["a0.png"], difficult=1))
    content = json.load(open(as_coco(str(tmp_path), "train", str(tmp_path / "out"))[0]))
    assert [a["iscrowd"] for a in content["annotations"]] == [1, 1]


def test_outlines_of_yolo(tmp_path):
    yolo(tmp_path)
    label = tmp_path / "train" / "labels" / "c2.txt"
    label.write_text("2 0.1 0.5 0.3 0.25 0.2 0.75\n")
    content = json.load(open(as_coco(str(tmp_path), "train", str(tmp_path / "out"))[0]))
    assert content["annotations"][-1]["bbox"] == pytest.approx([9, 15, 18, 30])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 x 0.1", "line 1: must be numbers"),
        ("\n3 0.5 0.5 0.1 0.1", "line 2: class 3 is none of 0 to 2"),
        ("1.5 0.5 0.5 0.1 0.1", "class 1.5 is none"),
        ("0 0.5 0.5 0.1", "line 1: must be 'class cx cy width height'"),
        ("0 45 30 10 10", "45 is no fraction of the image"),
        ("0 nan 0.5 0.1 0.1", "no fraction"),
    ],
)
def test_lines_of_yolo_that_cannot_be(tmp_path, text, words):
    yolo(tmp_path)
    label = tmp_path / "train" / "labels" / "a0.txt"
    label.write_text(text)
    with pytest.raises(InputError, match=f"{label}, .*{words}"):
        as_coco(str(tmp_path), "train", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>", "is no xml"),
        ("<html></html>", "must begin with <annotation>"),
        ("<annotation><object></object></annotation>", "object 1 has no <name>"),
        ("<annotation><object><name>a</name></object></annotation>", r"object 1 \(a\) must have"),
        ("<annotation><filename>z.png</filename></annotation>", "no image"),
    ],
)
def test_xml_that_cannot_be(tmp_path, text, words):
    voc(tmp_path)
    (tmp_path / "Annotations" / "a0.xml").write_text(text)
    if words == "no image":
        (tmp_path / "JPEGImages" / "a0.png").unlink()
    with pytest.raises((InputError, MissingFileError), match=f"a0.xml: .*{words}"):
        as_coco(str(tmp_path), "train", str(tmp_path / "out"))


@pytest.mark.parametrize("make", [yolo, voc])
def test_sizes_are_of_upright_images(tmp_path, make):
    """As EXIF turns them, which the boxes belong to."""
    make(tmp_path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = next(tmp_path.rglob("a0.png"))
    Image.new("RGB", (HEIGHT, WIDTH)).save(file, exif=exif)  # on its side
    content = json.load(open(as_coco(str(tmp_path), "train", str(tmp_path / "out"))[0]))
    assert {(x["width"], x["height"]) for x in content["images"]} == {(WIDTH, HEIGHT)}
    assert content["annotations"][0]["bbox"] == pytest.approx(IMAGES["a0.png"][0][1:])


def problems_of(folder, heading):
    """What a data set is refused for, a line each."""
    with pytest.raises(InputError) as error:
        as_coco(str(folder), "train", str(folder / "out"))
    first, *lines = str(error.value).splitlines()
    assert first == heading
    return lines


def test_all_problems_of_yolo_are_listed(tmp_path):
    yolo(tmp_path)
    folder = tmp_path / "train"
    (folder / "labels" / "a0.txt").write_text("7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n0 1 1 0.1 0.1\n")
    (folder / "labels" / "c2.txt").write_text("8 0.5 0.5 0.1 0.1\nx\n")
    (folder / "images" / "c2.png").write_bytes(b"")
    lines = problems_of(tmp_path, f"{tmp_path / 'data.yaml'}: 5 problems found")
    assert "c2.png: the file cannot be decoded (it is empty); replace it" in lines.pop(0)
    assert "a0.txt, line 1: class 7 is none of 0 to 2," in lines[0]
    assert re.search(r"\(1 more: \S+c2.txt, line 1\)$", lines.pop(0))
    assert "a0.txt, line 2: must be 'class cx cy width height'" in lines.pop(0)
    assert "c2.txt, line 2: must be numbers, got 'x'" in lines.pop(0)
    assert not lines


def test_all_problems_of_voc_are_listed(tmp_path):
    voc(tmp_path)
    annotations = tmp_path / "Annotations"
    (annotations / "a0.xml").write_text("<annotation>")
    objects = "<object><name> </name></object><object><name>a</name></object>"
    (annotations / "b1.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "JPEGImages" / "a0.png").write_bytes(b"no image")
    (tmp_path / "JPEGImages" / "c2.png").unlink()
    lines = problems_of(tmp_path, f"{annotations}: 5 problems found")
    expected = ["a0.xml: is no xml", "b1.xml: object 1 has no <name>", "object 2 (a) must have"]
    expected += ["c2.xml: there is no image c2.png", "a0.png: the file cannot be decoded"]
    for line, words in zip(lines, expected, strict=True):
        assert words in line


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere does not exist"):
        layout_of(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="COCO .*YOLO .*Pascal VOC"):
        layout_of(str(tmp_path))
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    with pytest.raises(InputError, match="data.yaml: names no images: add 'train' or 'val'"):
        layout_of(str(tmp_path))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a]\n")
    with pytest.raises(InputError, match="YOLO, with train, but no val"):
        as_coco(str(tmp_path), "val", str(tmp_path / "out"))
    with pytest.raises(MissingFileError, match="'train' names images, but there is no"):
        as_coco(str(tmp_path), "train", str(tmp_path / "out"))
    (tmp_path / "data.yaml").write_text("train: images\nnames: {1: a}\n")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="numbers in 'names' must be 0, 1"):
        as_coco(str(tmp_path), "train", str(tmp_path / "out"))


def test_the_blood_cells(capsys):
    """The layout of the repository's own data."""
    assert layout_of(str(DATA)).splits == ["train", "val"]
    cli.main(["check", str(DATA)])
    assert "292 images" in (out := capsys.readouterr().out) and "72 images" in out
