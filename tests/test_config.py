"""The config: strict, read as data only, and its keys beside those of detectron2."""

import pytest
import yaml
from fvcore.common.config import CfgNode as FvcoreCfgNode

from detectron2_ddetr import add_deformable_detr_config, load_config
from detectron2_ddetr.config import ONLY_OF_DETECTRON2
from detectron2_ddetr.config_rules import check_config
from detectron2_ddetr.errors import ExplainedError, InputError, MissingFileError, UnknownKeyError
from detectron2_ddetr.host import config as host_config
from detectron2_ddetr.toolbox import TOOLBOX, get_cfg

from .conftest import CONFIGS

BASE = str(CONFIGS / "deformable_detr/deformable_detr_R_50_50ep.yaml")
NODE = "MODEL.DETR."


def flatten(cfg, prefix=""):
    """{"A.B": value} of all leaves."""
    flat = {}
    for key, value in cfg.items():
        is_node = isinstance(value, FvcoreCfgNode)
        flat |= flatten(value, f"{prefix}{key}.") if is_node else {prefix + key: value}
    return flat


def test_keys_of_detectron2_are_left_alone():
    """Only new keys appear; the old ones keep their values."""
    before, cfg = flatten(get_cfg()), get_cfg()
    add_deformable_detr_config(cfg)
    after = flatten(cfg)
    assert {key: after[key] for key in before} == before
    new = set(after) - set(before)
    assert {key for key in new if not key.startswith(NODE)} == {
        "MODEL.DAT.DROP_PATH_RATE",
        "MODEL.DAT.NAME",
        "MODEL.DAT.OUT_FEATURES",
        "MODEL.TIMM.FROZEN_NORM",
        "MODEL.TIMM.NAME",
        "SOLVER.ACCUMULATION_STEPS",
        "SOLVER.AMP.PRECISION",
        "SOLVER.BATCH_RULE",
        "SOLVER.EARLY_STOP_PATIENCE",
        "SOLVER.EMA_DECAY",
        "SOLVER.FIND_NONFINITE",
        "SOLVER.REFERENCE_BATCH",
        "SOLVER.BACKBONE_MULTIPLIER",
        "SOLVER.CHECKPOINTS_TO_KEEP",
        "SOLVER.LINEAR_PROJ_MULTIPLIER",
        "TEST.INT8",
        "INPUT.RESIZE_RULE",
        "INPUT.CROP_RESIZE_SIZES",
        "DATASETS.CLASS_NAMES",
        "DATASETS.COCO_JSON",
    }


def test_the_defaults_are_the_paper_s_multi_scale_model():
    """The base YAML adds nothing to MODEL.DETR, so its defaults are what it trains."""
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    assert load_config(BASE).MODEL.DETR == cfg.MODEL.DETR


def test_opts_win_over_the_file_and_the_result_is_frozen():
    cfg = load_config(BASE, [NODE + "NUM_QUERIES", "77", "SOLVER.BASE_LR", "1e-3"])
    assert cfg.MODEL.DETR.NUM_QUERIES == 77 and cfg.SOLVER.BASE_LR == 1e-3
    assert load_config(BASE).MODEL.DETR.NUM_QUERIES == 300
    with pytest.raises(AttributeError):
        cfg.MODEL.DETR.NUM_QUERIES = 5


@pytest.mark.parametrize("where", ["file", "opts"])
def test_unknown_keys_are_named(tmp_path, where):
    path = tmp_path / "typo.yaml"
    opts = []
    text = f"_BASE_: {BASE}\n"
    if where == "file":
        text += "MODEL:\n  DETR:\n    NUM_QUERYS: 3\n"
    else:
        opts = [NODE + "NUM_QUERYS", "3"]
    path.write_text(text)
    with pytest.raises(KeyError, match="NUM_QUERYS; did you mean MODEL.DETR.NUM_QUERIES") as error:
        load_config(str(path), opts)
    assert (str(path) in str(error.value)) == (where == "file")


@pytest.mark.parametrize("where", ["file", "opts"])
@pytest.mark.parametrize(
    "key, value, result",
    [
        ("INPUT.MIN_SIZE_TRAIN", 320, (320,)),
        ("DATASETS.TRAIN", "cats", ("cats",)),
        ("MODEL.DETR.IN_FEATURES", "res5", ["res5"]),
        ("SOLVER.BASE_LR", 1, 1.0),
        ("SOLVER.BASE_LR", "fast", "BASE_LR must be a float, such as .*, got 'fast'"),
        ("SOLVER", 3, "SOLVER is a group of keys: .*BASE_LR"),
        ("MODEL.DEFORMABLE_DETR.COST_L1", 3, "has another name now: MODEL.DETR.COST_BBOX"),
        ("MODEL.DEFORMABLE_DETR.DROPOUT", 0, "has another name now: MODEL.DETR.DROPOUT"),
    ],
)
def test_a_value_is_taken_for_what_the_key_wants(tmp_path, where, key, value, result):
    """One value is the only entry of a tuple; what does not fit is said with key and example."""
    path, opts = tmp_path / "x.yaml", [key, str(value)]
    path.write_text(f"_BASE_: {BASE}\n")
    if where == "file":
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        path.write_text(yaml.dump({"_BASE_": BASE, **nested}))
        opts = []
    if isinstance(result, str):
        with pytest.raises(InputError, match=result):
            load_config(str(path), opts)
        return
    found = load_config(str(path), opts)
    for part in key.split("."):
        found = found[part]
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    "opts, words",
    [
        (["SEED", "1", "--resume"], "--resume stands after .* options go before"),
        (["SEED", "1", "INPUT.CROP.SIZE", "(1,", "2)"], "5 words cannot be paired"),
    ],
)
def test_words_that_are_no_pairs(opts, words):
    with pytest.raises(InputError, match=words):
        load_config(BASE, opts)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [", "x.yaml: not YAML"),
        ("- 1", "x.yaml: a config must be a mapping"),
        ("", "x.yaml: a config must be a mapping"),
        ("VERSION: 1", "x.yaml: has another VERSION than 2"),
        ("_BASE_: nowhere.yaml", "x.yaml: its _BASE_ .*nowhere.yaml does not exist"),
        ("_BASE_: x.yaml", "x.yaml: its _BASE_ leads back to a file that was read before"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ExplainedError, match=words):
        load_config(str(tmp_path / "x.yaml"))
    with pytest.raises(MissingFileError, match="y.yaml does not exist"):
        load_config(str(tmp_path / "y.yaml"))


def test_keys_are_added_once():
    """Another project's MODEL.DETR is not overwritten; and none at all is said."""
    cfg = get_cfg()
    with pytest.raises(InputError, match="call add_deformable_detr_config"):
        check_config(cfg)
    add_deformable_detr_config(cfg)
    cfg.MODEL.DETR.NUM_CLASSES = 7
    with pytest.raises(InputError, match="has a MODEL.DETR already"):
        add_deformable_detr_config(cfg)
    assert cfg.MODEL.DETR.NUM_CLASSES == 7


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be read"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("as_base", [False, True])
def test_config_files_run_no_code(tmp_path, as_base):
    """YAML tags that call functions are refused, also in a file named by _BASE_."""
    evil, marker = tmp_path / "evil.yaml", tmp_path / "marker"
    evil.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{marker}']\n")
    path = evil
    if as_base:
        path = tmp_path / "innocent.yaml"
        path.write_text("_BASE_: evil.yaml\nSEED: 1\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        load_config(str(path))
    assert not marker.exists()


def test_a_config_that_detectron2_has_written(tmp_path, caplog):
    """It loads without detectron2 as well, which then says what it does not have."""
    path = tmp_path / "config.yaml"
    written = {"CUDNN_BENCHMARK": False, "MODEL": {"RPN": {"NMS_THRESH": 0.7}, "DEVICE": "cpu"}}
    path.write_text(yaml.safe_dump({**written, "SEED": 5}))
    cfg = load_config(str(path))
    assert (cfg.MODEL.DEVICE, cfg.SEED) == ("cpu", 5)
    said = "left aside, 2 in all, such as CUDNN_BENCHMARK" in caplog.text
    assert said == (TOOLBOX == "host") != ("RPN" in cfg.MODEL)
    path.write_text("MODEL: {RPNS: {NMS_THRESH: 0.7}}")
    with pytest.raises(UnknownKeyError, match="there is no key MODEL.RPNS.NMS_THRESH"):
        load_config(str(path))


@pytest.mark.skipif(TOOLBOX != "detectron2", reason="needs detectron2")
def test_all_keys_of_detectron2_are_known_without_it():
    known = set(flatten(host_config.get_cfg()))
    for key in flatten(get_cfg()):
        assert (key in known) != key.startswith(ONLY_OF_DETECTRON2), key


def test_images_without_objects_are_kept_by_every_config():
    """PEERS 7.20: detectron2 drops them by default, about 1 021 of COCO's training set."""
    for path in CONFIGS.rglob("*.yaml"):
        assert not load_config(str(path)).DATALOADER.FILTER_EMPTY_ANNOTATIONS, path
