"""The command `ddetr`: what it finds, what it refuses, and how it says so."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from detectron2_ddetr import cli, load_config, model_zoo
from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.data.given_datasets import use_given_datasets
from detectron2_ddetr.errors import ExplainedError, InputError, MissingFileError, explained
from detectron2_ddetr.toolbox import DatasetCatalog, MetadataCatalog, setup_logger

from .conftest import CONFIGS, DATA, ROOT
from .fork_server import python
from .test_training import TINY, shapes  # noqa: F401  (a fixture)

VAL = [str(DATA / "annotations" / "instances_val.json"), str(DATA / "val")]
TRAIN = [str(DATA / "annotations" / "instances_train.json"), str(DATA / "train")]


@pytest.fixture(autouse=True)
def catalogs(monkeypatch):
    """Each test starts with the data sets that come with the package, and leaves no other."""
    monkeypatch.chdir(ROOT)
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(autouse=True)
def loggers():
    """Each test logs to its own output: the handlers of a command keep that of their test."""
    forget_loggers()
    yield
    forget_loggers()


def forget_loggers():
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "detectron2_ddetr"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def config(*opts):
    cfg = load_config(str(CONFIGS / "quick_start.yaml"), opts)
    cfg.defrost()
    return cfg


def test_names_of_the_zoo_are_the_shipped_files():
    names = model_zoo.list_config_files()
    shipped = [*CONFIGS.rglob("*.yaml"), *CONFIGS.glob("lazy/*.py")]
    assert names == sorted(str(p.relative_to(CONFIGS)) for p in shipped)
    assert len(names) >= 13
    for name in names:
        path = model_zoo.get_config_file(name)
        assert Path(path).samefile(CONFIGS / name)
        assert Path(model_zoo.get_config_file(Path(name).name)).samefile(path)
    assert model_zoo.get_config("quick_start.yaml") == load_config(
        str(CONFIGS / "quick_start.yaml")
    )
    assert model_zoo.get("quick_start.yaml", device="meta").device.type == "meta"


def test_an_unknown_config_is_answered_with_the_nearest():
    with pytest.raises(MissingFileError, match="deformable_detr_R_50_50ep.yaml"):
        model_zoo.get_config_file("deformable_detr_R50_50ep.yaml")
    with pytest.raises(SystemExit, match="^error: config file quick.yaml does not .*quick_start"):
        cli.main(["train", "--config-file", "quick.yaml"])
    with pytest.raises(SystemExit, match="lazy/quick_start.py is no YAML: .*give the .yaml"):
        cli.main(["train", "--config-file", "quick_start.py"])
    with pytest.raises(SystemExit, match="--config-file is missing"):
        cli.main(["train"])


def test_one_data_set_given_alone_is_used():
    cfg = config()
    notes = use_given_datasets(cfg, [("mine", *VAL)], [])
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST == ("mine",)
    assert "own training images" in notes[0]
    assert cfg.DATASETS.COCO_JSON == [["mine", *VAL]]


def test_what_is_given_and_not_used_is_refused():
    two = [("a", *TRAIN), ("b", *VAL)]
    for opts in ([], ["DATASETS.TRAIN", "a"], ["DATASETS.TEST", "b"]):
        with pytest.raises(InputError, match="given, but neither") as error:
            use_given_datasets(config(*opts), two, opts)
        assert "DATASETS.TRAIN a DATASETS.TEST b" in str(error.value)
    with pytest.raises(InputError, match="--dataset a is given twice"):
        use_given_datasets(config(), [two[0], two[0]], [])


def test_own_training_data_are_not_evaluated_on_those_of_the_config():
    opts = ["DATASETS.TRAIN", "a"]
    with pytest.raises(InputError, match="bccd_val.*DATASETS.TEST a"):
        use_given_datasets(config(*opts), [("a", *TRAIN)], opts)
    opts += ["DATASETS.TEST", "()"]
    cfg = config(*opts)
    assert use_given_datasets(cfg, [("a", *TRAIN)], opts)[-1] == "evaluating on nothing"
    opts = ["DATASETS.TRAIN", "a", "DATASETS.TEST", "bccd_val"]  # asked for in so many words
    use_given_datasets(config(*opts), [("a", *TRAIN)], opts)


def test_evaluation_needs_no_training_data():
    cfg = config()
    use_given_datasets(cfg, [("v", *VAL)], [], eval_only=True)
    assert cfg.DATASETS.TEST == ("v",) and cfg.DATASETS.TRAIN == ("bccd_train",)


def test_what_a_config_records_is_found_again(tmp_path):
    """The files of a run win over others that have its data sets' names by now."""
    copy = tmp_path / "copy.json"
    shutil.copy(VAL[0], copy)
    cfg = config("DATASETS.COCO_JSON", str([["elsewhere", str(copy), VAL[1]]]))
    cfg.DATASETS.TEST = ("elsewhere",)
    use_given_datasets(cfg, [], [], eval_only=True)
    assert MetadataCatalog.get("elsewhere").json_file == str(copy)

    DatasetCatalog.remove("elsewhere")
    MetadataCatalog.pop("elsewhere")
    use_given_datasets(config(), [("elsewhere", *VAL)], [])
    use_given_datasets(cfg, [], [], eval_only=True)
    assert MetadataCatalog.get("elsewhere").json_file == str(copy)

    DatasetCatalog.remove("elsewhere")
    MetadataCatalog.pop("elsewhere")
    use_given_datasets(config(), [("elsewhere", *VAL)], [])
    copy.unlink()
    notes = use_given_datasets(cfg, [], [], eval_only=True)
    assert "is not here" in notes[0] and VAL[0] in notes[0]


def test_explained_errors_end_the_program_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as stop, explained(traceback=False):
        raise InputError("x.json: broken; mend it")
    assert stop.value.code == "error: x.json: broken; mend it"
    with pytest.raises(InputError), explained(traceback=True):
        raise InputError("shown")
    with pytest.raises(ZeroDivisionError), explained(traceback=False):
        1 / 0  # a fault of the program keeps its traceback


@pytest.mark.parametrize("traceback", [False, True])
def test_the_log_of_a_training_has_no_traceback_of_them_either(traceback, caplog):
    """Both toolboxes log what ends a training with logger.exception."""
    for name in ("detectron2.engine", "detectron2.engine.train_loop"):
        logger = logging.getLogger(name)
        for kind, shown in ((InputError, traceback), (RuntimeError, True)):
            caplog.clear()
            with caplog.at_level(logging.ERROR, name):
                logger.addHandler(caplog.handler)
                try:
                    with pytest.raises((SystemExit, kind)), explained(traceback):
                        try:
                            raise kind("why")
                        except kind:
                            logger.exception("Exception during training:")
                            raise
                finally:
                    logger.removeHandler(caplog.handler)
            assert bool(caplog.records) == shown, (name, kind)


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise InputError("image 7 (a.png): cannot be decoded\nreplace it")


def test_errors_of_data_workers_are_shown_as_their_message():
    with pytest.raises(SystemExit) as stop, explained(traceback=False):
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert stop.value.code == "error: image 7 (a.png): cannot be decoded\nreplace it"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_remedy_is_said(tmp_path):
    name = "deformable_detr_R_50_50ep.yaml"
    with pytest.raises(SystemExit, match="MODEL.DEVICE is 'cuda'.*add MODEL.DEVICE cpu"):
        cli.main(["train", "--config-file", name, "OUTPUT_DIR", str(tmp_path / "o")])


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("meta", "cannot compute on here"),
        ("mps", "cannot compute on here"),
        ("gpu", "is no device: set cuda, or cpu"),
        ("", "is no device"),
    ],
)
def test_devices_that_cannot_be(tmp_path, device, words):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    opts = ["MODEL.DEVICE", device, "OUTPUT_DIR", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match=f"MODEL.DEVICE .*{words}"):
        cli.main(["train", "--config-file", "quick_start.yaml", *opts])


def test_an_option_of_data_sets_that_is_cut_short(capsys):
    """The key after it would be taken for the folder of images."""
    words = ["--config-file", "quick_start.yaml", "--dataset", "cats", "train.json"]
    with pytest.raises(SystemExit):
        cli.main(["train", *words, "DATASETS.TRAIN", "cats"])
    assert "DATASETS.TRAIN is a config key; it takes NAME JSON IMAGES" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"a\0b"])
def test_a_tag_that_names_no_checkpoint(tmp_path, content):
    (tmp_path / "config.yaml").write_text("VERSION: 2\n")
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(SystemExit, match="^error: .*last_checkpoint: .*write the name of a check"):
        cli.main(["eval", str(tmp_path)])
    with pytest.raises(InputError, match="last_checkpoint"):
        Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).get_checkpoint_file()


def test_weights_that_would_not_be_read_are_refused(tmp_path):
    words = ["--config-file", "quick_start.yaml", "--resume", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(SystemExit, match="MODEL.WEIGHTS and --resume.*leave one out"):
        cli.main(["eval", *words, "MODEL.WEIGHTS", "x.pth"])


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    words = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "file" / "run")]
    with pytest.raises(SystemExit, match="OUTPUT_DIR .*file/run': Not a directory"):
        cli.main(["train", "--config-file", "quick_start.yaml", *words])


def test_check(capsys):
    cli.main(["check", *VAL])
    assert "no problem found" in capsys.readouterr().out


def test_data_errors_end_without_a_traceback(tmp_path, capfd):
    """A broken json, one that is not there, and a data set that nobody registered."""
    (tmp_path / "cut.json").write_text('{"images": [')
    (tmp_path / "deep.json").write_text("[" * 200_000)
    unknown = ["--config-file", "quick_start.yaml", "MODEL.DEVICE", "cpu", "OUTPUT_DIR"]
    unknown += [str(tmp_path / "o"), "DATASETS.TRAIN", "('no_such_set',)"]
    for words, message in (
        (["check", str(tmp_path / "cut.json"), str(tmp_path)], "cut.json: not valid json"),
        (["check", str(tmp_path / "deep.json"), str(tmp_path)], "deep.json: brackets are nested"),
        (["check", str(tmp_path / "no.json"), str(tmp_path)], "no.json: the annotation file does"),
        (["check", VAL[0], str(tmp_path / "no")], "the folder of its images, .*no, does not exist"),
        (["train", *unknown], "DATASETS: 'no_such_set' is not registered; register it with"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            cli.main(words)
        assert "Traceback" not in "".join(capfd.readouterr())


def test_env(capsys):
    cli.main(["env"])
    assert "toolbox" in capsys.readouterr().out


def test_a_folder_that_is_no_run(tmp_path):
    for words, message in (([], "nothing is given"), ([str(tmp_path)], "has no config.yaml")):
        for command in ("eval", "visualize"):
            with pytest.raises(SystemExit, match=message):
                cli.main([command, *words])


def ddetr(*words, cwd, expected=0):
    status, log = python("-m", "detectron2_ddetr.cli", *words, cwd=cwd)
    assert status == expected, log[-6000:]
    return log


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):  # noqa: F811
    """The folder of a run on data of one's own, by a relative path, from another folder."""
    cwd = tmp_path_factory.mktemp("cwd")
    opts = [word for word in TINY if word not in ("DATASETS.TRAIN", "DATASETS.TEST", '("shapes",)')]
    shutil.copytree(shapes, cwd / "data")
    name = "deformable_detr_R_50_box_refine_50ep.yaml"
    data = ("--dataset", "mine", "data/shapes.json", "data")
    log = ddetr("train", "--config-file", name, *data, *opts, "OUTPUT_DIR", "run", cwd=cwd)
    assert "own training images" in log and "FutureWarning" not in log
    return cwd / "run"


def test_the_folder_of_a_run_is_enough(trained, tmp_path):
    """`eval` and `visualize` need nothing else, from anywhere; the run's own files stay."""
    before = {p.name: p.read_bytes() for p in trained.iterdir() if p.suffix in (".yaml", ".pth")}
    assert "mine" in yaml.safe_load(before["config.yaml"])["DATASETS"]["TEST"][0]
    log = ddetr("eval", trained, cwd=tmp_path)
    assert "evaluating on mine" in log and "Traceback" not in log
    assert (trained / "eval" / "coco_instances_results.json").is_file()
    ddetr("visualize", trained, "--num-images", "2", "--score-threshold", "0", cwd=tmp_path)
    assert (trained / "predictions.png").is_file() and (trained / "curves.png").is_file()
    for name, content in before.items():
        assert (trained / name).read_bytes() == content, name
    assert list(tmp_path.iterdir()) == []


def test_two_processes_say_it_without_a_traceback(tmp_path):
    """Errors of the processes of `launch` arrive as those of one."""
    words = ["train", "--config-file", "quick_start.yaml", "--num-gpus", 2, "--dist-url", "auto"]
    words += ["MODEL.DETR.TWO_STAGE", True, "MODEL.DETR.WITH_BOX_REFINE", False]
    log = ddetr(*words, "OUTPUT_DIR", tmp_path / "o", cwd=ROOT, expected=1)
    assert "error: MODEL.DETR.TWO_STAGE is True but" in log and "Traceback" not in log


def test_explained_errors_are_those_that_callers_expect():
    builtin = (ValueError, FileNotFoundError, FloatingPointError, NotImplementedError)
    for kind in ExplainedError.__subclasses__():
        assert issubclass(kind, builtin), kind


def test_files_and_folders_that_are_not_there(tmp_path):
    """Found out before any work is done, and said in one line."""
    (tmp_path / "file").touch()
    file, missing, out = (str(tmp_path / x) for x in ("file", "no.pth", "out.pth"))
    for words, message in (
        (["convert", missing, out], "no.pth does not exist"),
        (["convert", file, str(tmp_path / "no" / "out.pth")], "does not exist, or"),
        (["visualize", "--config-file", "quick_start.yaml", "--output", f"{file}/x"], "be made"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            cli.main(words)
