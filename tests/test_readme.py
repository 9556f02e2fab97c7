"""What the README shows is run as it stands there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ddetr import Trainer, build_optimizer, cli, evaluate, load_config, model_zoo
from detectron2_ddetr.checkpoint.checkpointer import Checkpointer
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import TOOLBOX, DefaultTrainer, build_model

from .conftest import DATA, ROOT, small_cfg
from .test_cli import loggers  # noqa: F401  (a fixture for each test)
from .test_cross_toolbox import write_dataset
from .test_gradients import BATCHES, without_gradient

needs_detectron2 = pytest.mark.skipif(
    TOOLBOX != "detectron2", reason="the README shows a project of detectron2"
)
THIN = """
    MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.DETR.HIDDEN_DIM 64 MODEL.DETR.ENC_LAYERS 1
    MODEL.DETR.DEC_LAYERS 2 MODEL.DETR.DIM_FEEDFORWARD 32 MODEL.DETR.NUM_QUERIES 12
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 128 INPUT.MIN_SIZE_TEST 64
    INPUT.MAX_SIZE_TEST 128 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 TEST.EVAL_PERIOD 0
""".split()


def blocks(language="python"):
    """The pieces of code of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [code for language_of_code, code in found if language_of_code == language]


def block(words):
    """The only piece of code that has these words."""
    (found,) = (code for code in blocks() if words in code)
    return found


def run(code, folder, *arguments):
    """The code as a program of its own, started in `folder`."""
    (folder / "mine.py").write_text(code, encoding="utf-8")
    return run_script("mine.py", folder, *arguments)


def run_script(script, folder, *arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@needs_detectron2
def test_project(tmp_path):
    """Trains, evaluates and resumes, with AdamW, on a json of one's own."""
    code = block("class MyTrainer(DefaultTrainer)")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        write_dataset(tmp_path / name)
        (tmp_path / name / "a.json").rename(tmp_path / f"{name}.json")
    config = ["--config-file", str(ROOT / "configs" / "quick_start.yaml")]
    opts = ["MODEL.DETR.NUM_CLASSES", "3", *THIN, "OUTPUT_DIR", "out"]
    run(code, tmp_path, *config, *opts)
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert {"bbox/AP", "loss_giou_enc"} < {name for line in lines for name in json.loads(line)}
    state = load_checkpoint_file(str(tmp_path / "out" / "model_final.pth"))["trainer"]["_trainer"]
    assert all("exp_avg_sq" in moments for moments in state["optimizer"]["state"].values())
    log = run(code, tmp_path, *config, "--resume", *opts, "SOLVER.MAX_ITER", "6")
    assert "Starting training from iteration 4" in log


@needs_detectron2
def test_a_trainer_that_would_use_another_optimizer_is_refused(tmp_path):
    """Plain, or with overrides of something else; before the model is built."""
    from detectron2.data import build_detection_train_loader

    from detectron2_ddetr import DeformableDETRDatasetMapper

    class Loads(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            mapper = DeformableDETRDatasetMapper(cfg, is_train=True)
            return build_detection_train_loader(cfg, mapper=mapper)

    class Optimizes(Loads):
        def build_optimizer(self, cfg, model):
            return build_optimizer(cfg, model)

    cfg = small_cfg(
        *("OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", ("bccd_train",)),
        *("MODEL.BACKBONE.FREEZE_AT", 0, "DATALOADER.NUM_WORKERS", 0),
    )
    for trainer in (DefaultTrainer, Loads):
        with pytest.raises(InputError) as error:
            trainer(cfg)
        for words in (trainer.__name__, "detectron2_ddetr.Trainer(cfg)", "build_optimizer("):
            assert words in str(error.value)
    assert type(Optimizes(cfg).optimizer) is type(Trainer(cfg).optimizer)


def test_operator():
    """Both entries, as they are called there."""
    code = block("output = ms_deform_attn(value")
    sizes = torch.tensor([(100, 167), (50, 84)])
    shape = (1, 3, 2, 2, 4)  # N, Q, M, L, P
    flat = (1, 3, 2, 8)
    names = {
        "value": torch.rand(1, int(sizes.prod(1).sum()), 2, 4),
        "spatial_shapes": sizes,
        "sampling_locations": torch.rand(*shape, 2),
        "attention_weights": torch.rand(shape),
        "reference_points": torch.rand(1, 3, 2, 2),
        "offsets": torch.rand(*flat, 2),
        "logits": torch.rand(flat),
    }
    exec(code, names)
    assert names["output"].shape == (1, 3, 8)


def test_predict(tmp_path, monkeypatch):
    """Commands and Python, with a thin random model for that of `make demo`, of fewer images."""
    demo = tmp_path / "output" / "demo"
    demo.mkdir(parents=True)
    opts = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64, "OUTPUT_DIR", str(demo)]
    cfg = small_cfg(*opts, "DATASETS.CLASS_NAMES", ["RBC", "WBC", "Platelets"])
    (demo / "config.yaml").write_text(cfg.dump())
    Checkpointer(build_model(cfg), str(demo)).save("model_final")
    photos = sorted((DATA / "val").glob("*.jpg"))[:4]
    places = ["photo.jpg", "folder/a.jpg", "scans/b.png", f"datasets/bccd/val/{photos[3].name}"]
    for photo, place in zip(photos, places):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).save(tmp_path / place)
    (tmp_path / "datasets" / "bccd" / "annotations").symlink_to(DATA / "annotations")

    commands = [code.replace("\\\n", " ") for code in blocks("") if "ddetr predict" in code]
    lines = [line for code in commands for line in code.splitlines() if "predict " in line]
    lines += [line for code in commands for line in code.splitlines() if "evaluate" in line]
    lines = [line for line in lines if "output/first" not in line]
    assert len(lines) == 4
    monkeypatch.chdir(tmp_path)
    for line in lines:
        program, *words = shlex.split(line)
        cli.main(words) if program == "ddetr" else evaluate.main(words[2:])
    assert Path("predictions", "photo.jpg").is_file()
    found = json.loads(Path("found.json").read_text())
    assert len({r["image_id"] for r in found}) == 1 and {r["category_id"] for r in found} <= {
        1,
        2,
        3,
    }
    names = {"array": np.zeros((30, 40, 3), np.uint8)}
    exec(block("Predictor.from_run"), names)
    assert [Path(row["image"]).name for row in names["rows"]] == [
        "photo.jpg", "a.jpg", "b.png", "image 3"
    ]  # fmt: skip
    assert names["instances"].image_size == (480, 640)


@needs_detectron2
def test_feature_pyramid():
    """Every parameter is trained: what is read needs all of that pyramid."""
    (code,) = (code for code in blocks("") if "build_resnet_fpn_backbone" in code)
    words = shlex.split(code.replace("\\\n", " "))
    assert words[:3] == ["ddetr", "train", "--config-file"]
    opts = [*words[4:], *THIN, "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0"]
    model = build_model(load_config(model_zoo.get_config_file(words[3]), opts)).train()
    assert all(p.requires_grad for p in model.parameters())
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []


@needs_detectron2
def test_lazy_tool(tmp_path):
    """detectron2's own script trains, evaluates, and resumes; fewer iterations, smaller images."""
    import detectron2

    script = Path(detectron2.__file__).parents[1] / "tools" / "lazyconfig_train_net.py"
    if not script.exists():
        pytest.skip(f"this detectron2 is installed without its repository: no {script}")
    (command,) = (code for code in blocks("") if "lazyconfig_train_net.py" in code)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[1].endswith("tools/lazyconfig_train_net.py")
    thin = [f"train.output_dir={tmp_path}", "train.max_iter=2"]
    thin += ["dataloader.train.total_batch_size=2"]
    thin += ["dataloader.test.mapper.augmentations.0.short_sides=[64]"]
    run_script(str(script), ROOT, *words[2:], *thin)
    run_script(str(script), ROOT, *words[2:4], "--resume", *words[4:], *thin, "train.max_iter=3")
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert {"bbox/AP50", "loss_giou_enc"} < {name for line in lines for name in json.loads(line)}
    state = load_checkpoint_file(str(tmp_path / "model_final.pth"))
    assert state["model"]["head.class_embed.3.weight"].shape == (3, 128)
    optimizer = state["trainer"]["optimizer"]
    assert all(moments["step"] == 3 for moments in optimizer["state"].values())


@needs_detectron2
def test_lazy_config(tmp_path):
    """Thinner, but otherwise as it stands there."""
    from detectron2.config import LazyConfig, instantiate

    (tmp_path / "swin.py").write_text(block("# swin.py"), encoding="utf-8")
    cfg = LazyConfig.load(str(tmp_path / "swin.py"))
    thin = ["backbone.embed_dim=12", "backbone.depths=[1,2,1,1]", "backbone.num_heads=[1,2,2,2]"]
    thin += ["head.input_proj.in_channels=[24,48,96]", "head.transformer.num_encoder_layers=1"]
    thin += ["head.transformer.num_decoder_layers=2", "head.num_queries=12"]
    cfg = LazyConfig.apply_overrides(cfg, [f"model.{override}" for override in thin])
    model = instantiate(cfg.model).train()
    for batch in BATCHES.values():
        assert without_gradient(model, batch()) == []
    with torch.no_grad():
        (result,) = model.eval()(BATCHES["boxes"]()[:1])
    assert len(result["instances"]) > 0
