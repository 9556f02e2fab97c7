"""`--train a.json images/ --val b.json images/`: one command, and the data say the classes."""

import copy
import logging
import shutil

import pytest
import yaml

from detectron2_ddetr import commands
from detectron2_ddetr.checkpoint.class_names import read_class_names
from detectron2_ddetr.data import dataset_contents
from detectron2_ddetr.data.class_names import check_datasets
from detectron2_ddetr.data.coco_dataset import register_coco_json
from detectron2_ddetr.engine.run import run_argument_parser, setup
from detectron2_ddetr.errors import InputError

from .conftest import ROOT
from .test_cli import ddetr
from .test_coco_dataset import base, catalogs, config, images, write  # noqa: F401  (fixtures)
from .test_folders import NAMES, voc, yolo
from .test_training import TINY, shapes  # noqa: F401

QUICK = ["--config-file", "quick_start.yaml", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The config of a command line, as a training would see it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")

    def config_of(*words):
        args = run_argument_parser().parse_args([*map(str, words), "OUTPUT_DIR", "out"])
        args.config_file = commands.find_config("quick_start.yaml")
        args.opts += ["MODEL.DEVICE", "cpu"]
        return setup(args)

    return config_of


@pytest.fixture
def jsons(tmp_path, images):  # noqa: F811
    """(json, images) to train on and to evaluate on, of two classes with odd ids."""
    pairs = []
    for name in ("a", "b"):
        content = base()
        for record in content["categories"]:
            record["id"] = 7 * record["id"] + 10**12
        for record in content["annotations"]:
            record["category_id"] = 7 * record["category_id"] + 10**12
        pairs.append((write(tmp_path, content, name), str(images)))
    return pairs


def test_a_json_each(given, jsons, caplog, monkeypatch):
    # Not the package's own, which setup() takes away from pytest.
    logger = logging.getLogger("contents")
    monkeypatch.setattr(dataset_contents, "logger", logger)
    with caplog.at_level(logging.INFO, logger="contents"):
        cfg = given("--train", *jsons[0], "--val", *jsons[1])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("train",), ("val",))
    assert cfg.DATASETS.COCO_JSON == [["train", *jsons[0]], ["val", *jsons[1]]]
    assert cfg.MODEL.DETR.NUM_CLASSES == 2 and cfg.DATASETS.CLASS_NAMES == ["red", "green"]
    (table,) = (text for text in caplog.messages if "classes of train" in text)
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["row", "id", "train", "test", "name"],
        ["0", "1000000000007", "12", "12", "red"],
        ["1", "1000000000014", "12", "12", "green"],
    ]


def test_without_val(given, jsons):
    """Nothing is evaluated, instead of the data of the config or the training images."""
    assert given("--train", *jsons[0]).DATASETS.TEST == ()


def test_nothing_to_train_on(given):
    with pytest.raises(InputError, match="DATASETS.TRAIN is empty"):
        given("DATASETS.TRAIN", "()", "DATASETS.TEST", "bccd_val")


def test_several(given, jsons):
    cfg = given("--train", *jsons[0], "--train", *jsons[1])
    assert cfg.DATASETS.TRAIN == ("train", "train_2")


def test_a_folder_of_several_splits(given, tmp_path):
    """It is the val set too, and the KEY VALUE pairs after it are those."""
    yolo(tmp_path / "data")
    cfg = given("--train", "data", "SEED", 3)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.SEED) == (("train",), ("val",), 3)
    assert cfg.DATASETS.CLASS_NAMES == NAMES and cfg.MODEL.DETR.NUM_CLASSES == 3
    assert cfg.DATASETS.COCO_JSON[0] == ["train", str(tmp_path / "data"), ""]


def test_folders_of_one_split_each(given, tmp_path):
    for name in ("first", "second"):
        voc(tmp_path / name)
        shutil.rmtree(tmp_path / name / "ImageSets")
    cfg = given("--train", "first", "--val", tmp_path / "second")
    assert cfg.DATASETS.TEST == ("val",) and cfg.MODEL.DETR.NUM_CLASSES == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--val", "A", "DATASETS.TEST", "bccd_val"], "--val and DATASETS.TEST"),
        (["--weights", "x.pth", "MODEL.WEIGHTS", "y.pth"], "--weights and MODEL.WEIGHTS"),
        (["--eval-only", "--train", "A"], "--train is given, but nothing is trained"),
    ],
)
def test_contradictions(given, jsons, words, message):
    words = [part for word in words for part in (jsons[0] if word == "A" else [word])]
    with pytest.raises(InputError, match=message):
        given(*words)


@pytest.mark.parametrize(
    "words", [["--train", "a.json"], ["--train", "a.json", "OUTPUT_DIR"], ["--val", "SEED"]]
)
def test_words_that_are_missing(words, capsys):
    with pytest.raises(SystemExit):
        run_argument_parser().parse_args(words)
    assert "it takes a json and its folder of images" in capsys.readouterr().err


def test_the_number_of_classes_may_be_said(given, jsons):
    with pytest.raises(InputError, match="NUM_CLASSES is 4 but data set 'train' has 2 classes"):
        given("--train", *jsons[0], "MODEL.DETR.NUM_CLASSES", 4)


def test_a_parent_of_the_classes_is_none(tmp_path, images, caplog):  # noqa: F811
    """Exports name what all classes are, as a category without annotations."""
    content = base()
    content["categories"].insert(0, {"id": 0, "name": "colours", "supercategory": "none"})
    for record in content["categories"][1:]:
        record["supercategory"] = "colours"
    register_coco_json("parent", write(tmp_path, content, "parent"), str(images))
    assert check_datasets(config(["parent"], ["parent"], 2)) == ["red", "green"]
    (record,) = caplog.records
    assert "left out of the classes: 'colours'" in record.message
    used = copy.deepcopy(content)
    used["annotations"][0]["category_id"] = 0
    register_coco_json("used", write(tmp_path, used, "used"), str(images))
    assert check_datasets(config(["used"], [], 3)) == ["colours", "red", "green"]


def test_one_command_and_nothing_else(tmp_path, shapes):  # noqa: F811
    """Train, move the run, evaluate it: the folder of a run is enough."""
    root = tmp_path / "voc"
    voc(root)
    tiny = TINY.copy()
    for key in ("MODEL.DETR.NUM_CLASSES", "DATASETS.TRAIN", "DATASETS.TEST"):
        place = tiny.index(key)
        del tiny[place : place + 2]
    words = ["--config-file", "deformable_detr_R_50_box_refine_50ep.yaml", "--train", root, *tiny]
    said = ddetr("train", *words, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", "run", cwd=tmp_path)
    assert "row" in said and "classes of train" in said and "evaluating on val" in said
    assert read_class_names(str(tmp_path / "run" / "model_final.pth")) == NAMES
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["MODEL"]["DETR"]["NUM_CLASSES"] == 3
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert "Box AP of val" in ddetr("eval", "moved", cwd=tmp_path)
