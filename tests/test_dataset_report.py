"""The report of a data set against numbers counted by hand."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from detectron2_ddetr import check_coco_json, cli
from detectron2_ddetr.data import in_threads, time_left
from detectron2_ddetr.data.box_columns import boxes_of
from detectron2_ddetr.data.dataset_contents import check_contents
from detectron2_ddetr.data.same_files import same_files
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import BoxMode, DatasetCatalog, MetadataCatalog

from .conftest import DATA, small_cfg
from .test_cli import loggers  # noqa: F401  (a fixture)
from .test_dataset_contents import config  # noqa: F401  (a fixture)


def save(path, width, height, colour=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (colour, 9, 9)).save(path, **options)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def words(text):
    """Without the breaks of lines."""
    return " ".join(text.split())


#: Of each box: image, category, [x, y, w, h], iscrowd.
BOXES = [
    (0, 1, [0, 0, 31, 33], 0),  # 1023 px^2: small
    (0, 1, [50, 50, 32, 32], 0),  # 1024: medium
    (0, 1, [100, 0, 96, 95], 0),  # 9120: medium
    (0, 2, [100, 0, 96, 96], 0),  # 9216: large
    (0, 2, [100, 0, 96, 96], 0),  # a copy
    (1, 1, [-5, 0, 20, 20], 0),  # 400: small, reaches out by 5 px
    (1, 1, [0, 0, 10, 10.5], 0),  # 105: small
    (1, 2, [0, 0, 100, 200], 1),
    (1, 3, [5, 5, 0, 9], 0),  # without area
    *((3, 1, [k, 0, 10, 10], 0) for k in range(5)),  # 100 each: small
]


@pytest.fixture
def odd(tmp_path):
    """(json, images): a landscape, one that EXIF turns upright, a square without boxes, a copy."""
    root = tmp_path / "images"
    save(root / "wide.png", 300, 200)
    save(root / "turned.jpg", 200, 100, exif=exif(6))
    save(root / "square.png", 120, 120, colour=1)
    shutil.copyfile(root / "wide.png", root / "copy.png")
    sizes = {"wide.png": (300, 200), "turned.jpg": (100, 200), "square.png": (120, 120)}
    sizes["copy.png"] = (300, 200)
    content = {
        "images": [
            {"id": i, "file_name": name, "width": w, "height": h}
            for i, (name, (w, h)) in enumerate(sizes.items())
        ],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": b, "iscrowd": crowd}
            | {"area": b[2] * b[3]}
            for k, (i, c, b, crowd) in enumerate(BOXES, 1)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(("ant", "bee", "cat"), 1)],
    }
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    return str(path), str(root)


def test_every_number(odd):
    report = check_coco_json(*odd)
    assert all(len(line) <= 100 for line in report.splitlines())
    said = words(report)
    # 14 annotations: a crowd region, and one without area.
    assert "odd.json: 4 images, 12 boxes, 1 crowd region" in said
    # ant 3 + 2 + 5, bee 2, cat 0; the classes with the fewest boxes first.
    assert "row id boxes name 0 1 10 ant 1 2 2 bee 2 3 0 cat" in said
    assert "3: ant 83%, bee 17%, cat 0%; 2 rare, under 10 boxes: cat (0), bee (2)" in said
    # 5, 2, 0 and 5 boxes.
    assert "median 3.5 boxes, most wide.png (5); 1 image without boxes, kept as background" in said
    # Areas: 1023, 400, 105, 5 x 100 small; 1024, 9120 medium; 2 x 9216 large.
    assert "small 67%, medium 17%, large 17%" in said
    # Sides in order: 10 x 5, 10.2, 20, 31.98, ...: the median lies between 10.2 and 20.
    assert f"median side {(10.5 * 10) ** 0.5 / 2 + 10:.3g} px" in said
    # As shares of the image's side: 5 x 10/244.9, 10.2/141.4, 31.98/244.9, 32/244.9, ...
    share = np.mean([105**0.5 / (100 * 200) ** 0.5, 1023**0.5 / (300 * 200) ** 0.5])
    assert f"{share:.2g} of the image's" in said
    assert "120 x 120 to 300 x 200 px; 2 landscape, 1 portrait, 1 square; 1 turned upright" in said
    assert "look at 1 box without area (not learnt); 1 box reaching out of its image" in said
    assert "; 1 repeated box; 1 repeated image (wide.png = copy.png)" in said
    assert "no image over MODEL.DETR.NUM_QUERIES 300, no image over TEST.DETECTIONS_P" in said
    assert report.splitlines()[-1].startswith("can be used, but see the")


def test_a_sound_data_set_is_said_to_be_sound():
    report = check_coco_json(str(DATA / "annotations" / "instances_val.json"), str(DATA / "val"))
    assert report.splitlines()[-1] == "no problem found"
    assert "look at" not in report and "without boxes" not in report and "turned" not in report
    assert "no box reaching out of its image" in words(report)


def test_crowded_images_are_named(odd, tmp_path, capsys):
    config_file = tmp_path / "thin.yaml"
    config_file.write_text("VERSION: 2\nMODEL: {DETR: {NUM_QUERIES: 4}}\n")
    cli.main(["check", *odd, "--config-file", str(config_file)])
    said = words(capsys.readouterr().out)
    assert "2 images over MODEL.DETR.NUM_QUERIES 4: wide.png (5), copy.png (5)" in said


def test_names_of_any_length_fit(tmp_path):
    root = tmp_path / "images"
    save(root / f"{'a' * 130}.png", 8, 8)
    content = {
        "images": [{"id": 1, "file_name": f"{'a' * 130}.png", "width": 8, "height": 8}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 4, 4],
                "iscrowd": 0,
                "area": 9,
            }
        ],
        "categories": [{"id": 1, "name": "b" * 150}],
    }
    path = tmp_path / f"{'c' * 120}.json"
    path.write_text(json.dumps(content))
    report = check_coco_json(str(path), str(root))
    assert max(map(len, report.splitlines())) == 100
    assert len(report.splitlines()) < 20


def folder(root, train, val):
    """A data set in COCO's layout, of images by (name, colour), each with a box."""
    (root / "annotations").mkdir(parents=True)
    for split, files in (("train", train), ("val", val)):
        for name, colour in files:
            save(root / split / name, 20, 10, colour)
        content = {
            "images": [
                {"id": i, "file_name": name, "width": 20, "height": 10}
                for i, (name, _) in enumerate(files)
            ],
            "annotations": [
                {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 1, 15, 5]}
                | {"iscrowd": 0, "area": 75}
                for i in range(len(files))
            ],
            "categories": [{"id": 1, "name": "ant"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return str(root)


def messages(caplog, level):
    return [r.getMessage() for r in caplog.records if r.levelno == level]


def test_images_in_both_splits_are_found_by_content(tmp_path, capsys):
    """Under another name; what only has the name of another, or its length, is another image."""
    train = [("a.png", 1), ("b.png", 2), ("same.png", 3)]
    root = folder(tmp_path / "d", train, [("x.png", 2), ("same.png", 4), ("y.png", 5)])
    sizes = {p.stat().st_size for p in (tmp_path / "d").rglob("*.png")}
    assert len(sizes) == 1
    cli.main(["check", root])
    out = words(capsys.readouterr().out)
    assert "1 image of val also in train, byte by byte" in out
    assert "train/b.png = val/x.png" in out and "a.png =" not in out and "same.png =" not in out
    assert "row id train val name 0 1 3 3 ant" in out and "no repeated image" in out
    assert out.endswith("can be used, but see the 1 warning above")


def test_a_run_says_it_too(tmp_path, caplog, config):  # noqa: F811
    def records(split, colours):
        found = []
        for i, colour in enumerate(colours):
            path = tmp_path / split / f"{split}{i}.png"
            save(path, 20, 10, colour)
            box = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
            found.append({"file_name": str(path), "image_id": i, "annotations": [box]})
        return found

    cfg = config(records("train", [1, 2, 2]), records("test", [3, 2, 1]))
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        check_contents(cfg)
    (shared,) = messages(caplog, logging.WARNING)
    assert shared.startswith("2 images of test also in train")
    assert shared.splitlines()[1:] == [
        "  train/train0.png = test/test2.png",
        "  train/train1.png = test/test1.png",
    ]
    train, test = [t for t in messages(caplog, logging.INFO) if "box sizes" in t]
    assert train.startswith("data set train: 3 images, 3 boxes")
    assert "1 repeated image (train1.png = train2.png)" in train
    # Corners: 8 x 8 px.
    assert "median side 8 px" in words(test) and "repeated image (" not in test
    assert "row  id  train  test  name\n  0          3     3  a" in caplog.text


def test_one_data_set_for_both_is_no_accident(tmp_path, caplog):
    for name in ("a.png", "b.png"):  # the same within it does not make it so either
        save(tmp_path / name, 20, 10)
    content = [{"file_name": str(tmp_path / n), "annotations": []} for n in ("a.png", "b.png")]
    DatasetCatalog.register("own", lambda: content)
    MetadataCatalog.get("own").set(thing_classes=["a"])
    try:
        cfg = small_cfg("DATASETS.TRAIN", ("own",), "DATASETS.TEST", ("own",))
        with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
            check_contents(cfg)
    finally:
        DatasetCatalog.remove("own")
        MetadataCatalog.pop("own")
    assert not messages(caplog, logging.WARNING)
    assert caplog.text.count("data set own: 2 images, 0 boxes") == 1


def test_what_training_leaves_out_is_said(tmp_path, caplog, config):  # noqa: F811
    save(tmp_path / "a.png", 20, 10)
    box = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [box]}
    cfg = config(
        [record, {**record, "annotations": [{**box, "iscrowd": 1}]}],
        [],
        *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True),
    )
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        check_contents(cfg)
    train, _ = [words(t) for t in messages(caplog, logging.INFO) if t.startswith("data set")]
    assert train.startswith("data set train: 1 image, 1 box")
    assert "1 image without boxes left out of training, as DATALOADER.FILTER_EMPTY" in train


def test_the_report_comes_before_the_refusal(tmp_path, caplog, config):  # noqa: F811
    save(tmp_path / "a.png", 20, 10)
    (tmp_path / "b.png").write_text("no image")
    records = [{"file_name": str(tmp_path / n), "annotations": []} for n in ("a.png", "b.png")]
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        with pytest.raises(InputError, match="data set 'train': 1 of 2 images cannot be used"):
            check_contents(config(records, []))
    assert "1 unusable image" in caplog.text and "all 20 x 10 px" in caplog.text


def test_problems_of_all_files_come_together(tmp_path):
    root = folder(tmp_path / "d", [("a.png", 1)], [("b.png", 2)])
    for split, change in (("train", {"bbox": [0, 0, -1, 5]}), ("val", {"image_id": 99})):
        path = tmp_path / "d" / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["annotations"][0] |= change
        path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", root])
    text = str(stop.value)
    assert "instances_train.json: 1 problem found\n  1. annotation 1 of image 0 (a.png): b" in text
    assert "instances_val.json: 1 problem found\n  1. annotation 1 of image 99 (None): ima" in text


@pytest.mark.parametrize("length", [0, 10, 5000, 3 * 2**20 + 7])
def test_same_files(tmp_path, length):
    """One byte at the beginning, in the middle or at the end makes another file."""
    content = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8)
    files = {"a": content, "copy": content, "longer": np.append(content, 0)}
    for place in {0, length // 2, length - 1} if length else ():
        files[f"at{place}"] = content.copy()
        files[f"at{place}"][place] ^= 1
    for name, data in files.items():
        (tmp_path / name).write_bytes(data.tobytes())
    paths = [str(tmp_path / name) for name in files]
    sizes = [len(data) for data in files.values()]
    assert same_files(paths, sizes) == [[0, 1]]
    # The same path twice; a file that could not be read.
    assert same_files([*paths[:2], paths[0]], [*sizes[:2], sizes[0]]) == [[0, 1, 2]]
    assert same_files([paths[2], paths[2]], [sizes[2]] * 2) == [[0, 1]]
    assert same_files([*paths[:2], "gone"], [sizes[0], -1, -1]) == []


def test_hardly_anything_is_read(tmp_path, monkeypatch):
    """Of files of one length but other contents, no more than a part."""
    rng = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / name).write_bytes(rng.bytes(100_000))
    from detectron2_ddetr.data import same_files as module

    monkeypatch.setattr(module, "_digest", None)
    assert same_files([str(tmp_path / name) for name in "abc"], [100_000] * 3) == []
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    with pytest.raises(TypeError):
        same_files([str(tmp_path / name) for name in "ab"], [100_000] * 2)


def test_progress_and_the_time_left_are_said(monkeypatch, caplog):
    """64 of 192 took 3 s, so the other 128 will take 6."""
    now = iter([100.0, 103.0, 104.0, 105.0])
    monkeypatch.setattr(time_left.time, "monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        assert [*in_threads.in_threads(abs, range(-192, 0), "counting")] == [*range(192, 0, -1)]
    assert caplog.messages == ["counting: 64 of 192 images, 0:00:06 left"]


def test_many_copies_do_not_fill_the_screen(tmp_path, caplog, config):  # noqa: F811
    records = []
    for i in range(400):
        save(tmp_path / f"{i}.png", 20, 10, i // 2 % 100)
        records.append({"file_name": str(tmp_path / f"{i}.png"), "annotations": []})
    with caplog.at_level(logging.INFO, logger="detectron2_ddetr"):
        check_contents(config(records[:200] + records[:6], records))
    for text in caplog.messages:
        assert len(text.splitlines()) < 15 and len(text) < 1200
    (shared,) = messages(caplog, logging.WARNING)
    assert shared.startswith("400 images of test also") and "  ... and 390 more" in shared


def test_both_modes_of_boxes():
    boxes = [
        {"bbox": [1, 2, 11, 7], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 4},
        {"bbox": [1, 2, 11, 7], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 5, "iscrowd": 1},
    ]
    columns = boxes_of([{}, {"annotations": boxes}, {"annotations": []}])
    assert columns.image.tolist() == [1, 1] and columns.category.tolist() == [4, 5]
    assert columns.boxes.tolist() == [[1, 2, 10, 5], [1, 2, 11, 7]]
    assert columns.crowd.tolist() == [False, True]
    assert len(boxes_of([{}])) == 0
