"""Training as users run it: train_net.py in processes of their own, on a tiny data set."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.testing import assert_close

from detectron2_ddetr.checkpoint.files import load_checkpoint_file

from .conftest import ROOT
from .fork_server import python

TINY = """
    MODEL.DEVICE cpu MODEL.WEIGHTS "" MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 50
    MODEL.RESNETS.NORM BN MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.DETR.HIDDEN_DIM 32
    MODEL.DETR.NHEADS 2 MODEL.DETR.ENC_LAYERS 1
    MODEL.DETR.DEC_LAYERS 2 MODEL.DETR.DIM_FEEDFORWARD 64
    MODEL.DETR.NUM_QUERIES 12 MODEL.DETR.NUM_CLASSES 2
    MODEL.DETR.DROPOUT 0.1
    INPUT.MIN_SIZE_TRAIN (64,80) INPUT.MAX_SIZE_TRAIN 128 INPUT.CROP.ENABLED False
    INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 128
    DATASETS.TRAIN ("shapes",) DATASETS.TEST ("shapes",) DATALOADER.NUM_WORKERS 0
    SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS () SOLVER.MAX_ITER 8 SOLVER.CHECKPOINT_PERIOD 100
    TEST.EVAL_PERIOD 0
""".split()
TINY = [word.strip('"') for word in TINY]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Six images, 96 x 64, of two kinds of rectangles, as a COCO json."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        image = np.full((64, 96, 3), 200, np.uint8)
        for kind, colour, (w, h) in ((1, (255, 0, 0), (30, 14)), (2, (0, 0, 255), (12, 26))):
            x, y = int(rng.integers(0, 96 - w)), int(rng.integers(0, 64 - h))
            cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), colour, -1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": kind, "iscrowd": 0,
                 "bbox": [x, y, w, h], "area": w * h}  # fmt: skip
            )
        cv2.imwrite(str(root / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 64})
    categories = [{"id": 1, "name": "lying"}, {"id": 2, "name": "standing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "shapes.json").write_text(json.dumps(content))
    return root


def command(shapes, output, *arguments, opts=()):
    """The command line and environment of a tiny training."""
    words = [sys.executable, str(ROOT / "train_net.py")]
    words += [
        "--config-file",
        str(ROOT / "configs" / "deformable_detr" / "deformable_detr_R_50_box_refine_50ep.yaml"),
    ]
    words += ["--dataset", "shapes", str(shapes / "shapes.json"), str(shapes), *arguments]
    words += [*TINY, "OUTPUT_DIR", str(output), *map(str, opts)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return words, {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(shapes, output, *arguments, opts=(), expected=0):
    (_, *words), _ = command(shapes, output, *arguments, opts=opts)
    status, log = python(*words)
    assert status == expected, log[-6000:]
    return log


def last_checkpoint(output):
    return load_checkpoint_file(str(output / (output / "last_checkpoint").read_text()))


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run(shapes, output)
    return last_checkpoint(output)


def assert_same_run(resumed, reference):
    """Weights, optimiser, schedule and seed, to the bit."""
    assert resumed.keys() == reference.keys()
    assert_close(resumed["model"], reference["model"], rtol=0, atol=0)
    assert resumed["trainer"]["iteration"] == reference["trainer"]["iteration"] == 7
    assert resumed["trainer"]["hooks"] == reference["trainer"]["hooks"]
    assert resumed["trainer"]["images"] == reference["trainer"]["images"] == 16
    ours, theirs = (x["trainer"]["_trainer"]["optimizer"] for x in (resumed, reference))
    assert ours["param_groups"] == theirs["param_groups"]
    assert_close(ours["state"], theirs["state"], rtol=0, atol=0)


def started(words, env, **options):
    """A process whose log is read when it has ended: the pipe must hold all of it."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "pipesize": 2**20}
    return subprocess.Popen(words, env=env, text=True, **options)


def check_it_runs(process, deadline):
    """Ends the test, and what it waits for, with its log."""
    if process.poll() is not None or time.monotonic() > deadline:
        process.kill()
        pytest.fail(process.communicate()[0])


def wait_for(process, output, iteration):
    """Until the last checkpoint, from which --resume goes on, is of at least this iteration."""
    deadline = time.monotonic() + 120
    tag = output / "last_checkpoint"
    while not tag.exists() or tag.read_text() in (
        "model_initial.pth", *(f"model_{i:07d}.pth" for i in range(iteration))
    ):  # fmt: skip
        check_it_runs(process, deadline)
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed(shapes, uninterrupted, tmp_path, signum):
    """Ctrl-C, SIGTERM and kill -9 leave a checkpoint; what follows equals not having stopped."""
    workers = 1 if signum == signal.SIGINT else 0
    words, env = command(
        shapes, tmp_path, opts=["SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", workers]
    )
    process = started(words, env, start_new_session=True)
    wait_for(process, tmp_path, iteration=1)
    os.killpg(process.pid, signum)  # as a terminal does, worker processes included
    process.communicate(timeout=60)
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)
    stopped_at = last_checkpoint(tmp_path)["trainer"]["iteration"]
    assert 1 <= stopped_at
    log = run(shapes, tmp_path, "--resume")
    if stopped_at < 7:
        assert f"Starting training from iteration {stopped_at + 1}" in log
    assert_same_run(last_checkpoint(tmp_path), uninterrupted)


def test_resumed_across_an_epoch_with_workers(shapes, uninterrupted, tmp_path):
    """The order of the data survives: 8 iterations of 2 images are 2.7 epochs of 6."""
    run(shapes, tmp_path, opts=["SOLVER.MAX_ITER", 3, "DATALOADER.NUM_WORKERS", 2])
    run(shapes, tmp_path, "--resume", opts=["DATALOADER.NUM_WORKERS", 1])
    assert_same_run(last_checkpoint(tmp_path), uninterrupted)


def test_killed_before_the_first_checkpoint(shapes, uninterrupted, tmp_path):
    """The state before the first iteration is saved too."""
    words, env = command(shapes, tmp_path)
    process = started(words, env)
    deadline = time.monotonic() + 120
    while not (tmp_path / "last_checkpoint").exists():
        check_it_runs(process, deadline)
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert last_checkpoint(tmp_path)["trainer"]["iteration"] == -1
    run(shapes, tmp_path, "--resume")
    assert_same_run(last_checkpoint(tmp_path), uninterrupted)


def test_random_seed_is_resumed(shapes, tmp_path):
    """Without a SEED one is drawn, and remembered by the checkpoint."""
    run(shapes, tmp_path, opts=["SEED", -1, "SOLVER.MAX_ITER", 2])
    seed = last_checkpoint(tmp_path)["trainer"]["hooks"]["StepSeed"]["seed"]
    run(shapes, tmp_path, "--resume", opts=["SEED", -1, "SOLVER.MAX_ITER", 4])
    assert last_checkpoint(tmp_path)["trainer"]["hooks"]["StepSeed"]["seed"] == seed


def test_two_processes_equal_one(shapes, tmp_path):
    """Parity I66: the gradients of two CPU processes are those of one with the same batch."""
    opts = ["MODEL.DETR.DROPOUT", 0.0, "MODEL.RESNETS.NORM", "FrozenBN",
            "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.MAX_ITER", 1]  # fmt: skip
    moments = []
    for arguments in ([], ["--num-gpus", "2", "--dist-url", "auto"]):
        output = tmp_path / str(len(arguments))
        log = run(shapes, output, *arguments, opts=opts)
        assert f"World size: {2 if arguments else 1}" in log
        state = last_checkpoint(output)["trainer"]["_trainer"]["optimizer"]["state"]
        moments.append({i: s["exp_avg"] for i, s in state.items()})  # 0.1 times the gradients
    assert moments[1].keys() == moments[0].keys()
    # Sums of float32 in another order; what a normalisation makes zero is only noise.
    noise = 1e-3 * max(whole.norm() for whole in moments[0].values())
    for index, whole in moments[0].items():
        assert (moments[1][index] - whole).norm() <= 1e-2 * whole.norm() + noise, index


def test_two_processes_stopped_and_resumed(shapes, tmp_path):
    """SIGTERM to the launcher: the processes agree on the iteration, and go on from there."""
    words, env = command(
        shapes, tmp_path, "--num-gpus", "2", "--dist-url", "auto",
        opts=["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 500],
    )  # fmt: skip
    process = started(words, env, start_new_session=True)
    wait_for(process, tmp_path, iteration=1)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    stopped_at = last_checkpoint(tmp_path)["trainer"]["iteration"]
    log = run(
        shapes, tmp_path, "--resume", "--num-gpus", "2", "--dist-url", "auto",
        opts=["SOLVER.MAX_ITER", stopped_at + 3],
    )  # fmt: skip
    assert f"Starting training from iteration {stopped_at + 1}" in log


def test_non_finite_loss(shapes, tmp_path):
    """
    The error has the iteration, the loss terms, the images and the cause; the step before it is
    saved.
    """
    log = run(shapes, tmp_path, opts=["SOLVER.BASE_LR", "1e15", "SOLVER.MAX_ITER", 6], expected=1)
    message = log[log.rindex("error: iteration") :]
    iteration = int(re.search(r"iteration (\d+) is not finite", message)[1])
    assert "loss_bbox_0" in message and re.search(r"shapes\S*/\d\.png", message)
    assert re.search(r"process 0: (backbone|head)\.\S+ \(\w+\) computes .*To blame is an", message)
    assert "--resume with a lower SOLVER.BASE_LR" in message
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint["trainer"]["iteration"] == iteration - 1
    assert "Traceback" not in log


def test_the_advice_after_a_loss_that_is_not_finite(shapes, tmp_path):
    """A lower rate is not enough where the weights are ruined; the way back is, and it trains."""
    run(shapes, tmp_path, opts=["SOLVER.BASE_LR", "1e15", "SOLVER.MAX_ITER", 6], expected=1)
    calm = ["SOLVER.BASE_LR", "1e-4", "SOLVER.MAX_ITER", 6]
    log = run(shapes, tmp_path, "--resume", opts=calm, expected=1)
    name, tag = re.search(r"Write (\S+) into (\S+) to go back", log).groups()
    assert tag == str(tmp_path / "last_checkpoint")
    Path(tag).write_text(name)
    run(shapes, tmp_path, "--resume", opts=calm)
    assert last_checkpoint(tmp_path)["trainer"]["iteration"] == 5


def test_unreadable_image_loses_nothing(shapes, tmp_path):
    """A truncated image is named, and the iterations before it are saved."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in shapes.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damaged = folder / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    output = tmp_path / "output"
    log = run(folder, output, expected=1)
    assert "3.png" in log and "cannot be decoded" in log
    last = last_checkpoint(output)["trainer"]["iteration"]
    assert f"training stopped after {last + 1} of 8 iterations" in log


def test_one_value_is_not_enough_for_batch_norm(shapes, tmp_path):
    """A small image alone: said with the image and what to change, and nothing is lost."""
    opts = ["SOLVER.IMS_PER_BATCH", 1, "INPUT.MIN_SIZE_TRAIN", 32, "INPUT.MAX_SIZE_TRAIN", 32]
    log = run(shapes, tmp_path, opts=opts, expected=1)
    assert "BatchNorm cannot be trained on one value" in log and ".png alone in a pass" in log
    assert "Traceback" not in log and (tmp_path / "model_initial.pth").exists()


def test_wrong_number_of_classes_stops_at_once(shapes, tmp_path):
    """Before the model is built."""
    log = run(shapes, tmp_path, opts=["MODEL.DETR.NUM_CLASSES", 5], expected=1)
    assert "NUM_CLASSES is 5 but data set 'shapes' has 2 classes (lying, standing)" in log
    assert not list(tmp_path.glob("*.pth"))


def test_evaluation(shapes, tmp_path):
    """--eval-only on a checkpoint gives the AP of the training's own evaluation."""
    log = run(shapes, tmp_path, opts=["SOLVER.MAX_ITER", 2])
    again = run(
        shapes, tmp_path, "--eval-only", opts=["MODEL.WEIGHTS", tmp_path / "model_final.pth"]
    )
    found = [re.findall(r"copypaste: (\d\S+)", text)[-1] for text in (log, again)]
    assert found[0] == found[1]
    resumed = run(shapes, tmp_path, "--eval-only", "--resume")
    assert re.findall(r"copypaste: (\d\S+)", resumed)[-1] == found[0]


def test_evaluation_needs_trained_weights(shapes, tmp_path):
    """Random weights are not evaluated by accident."""
    log = run(shapes, tmp_path, "--eval-only", expected=1)
    assert "no weights to evaluate" in log


def test_learns(shapes, tmp_path):
    """Overfits six images: x and y, classes and coordinates are all in their place."""
    opts = ["SOLVER.MAX_ITER", 260, "SOLVER.BASE_LR", 2e-3, "SOLVER.BACKBONE_MULTIPLIER", 1.0,
            "MODEL.DETR.DROPOUT", 0.0, "SOLVER.IMS_PER_BATCH", 6,
            "SOLVER.STEPS", "(200,)", "SOLVER.LINEAR_PROJ_MULTIPLIER", 1.0]  # fmt: skip
    run(shapes, tmp_path, opts=opts)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = [m["total_loss"] for m in metrics if "total_loss" in m]
    assert losses[-1] < 0.35 * losses[0]
    assert metrics[-1]["bbox/AP50"] > 80


def test_progress_fits_a_terminal(shapes, tmp_path):
    """In lines of at most 160 columns; the losses of all layers are in metrics.json."""
    opts = ["SOLVER.MAX_ITER", 40, "MODEL.DETR.TWO_STAGE", True, "TEST.EVAL_PERIOD", 30]
    log = run(shapes, tmp_path, opts=opts)
    # All after the start but those that have a path, of whatever length that is.
    started = log.rindex("\n", 0, log.index(" iter: ")) + 1
    lines = [line for line in log[started:].splitlines() if " /" not in line]
    lines = [re.sub("\x1b.*?m", "", line) for line in lines]  # colours have no width
    assert max(map(len, lines)) <= 160
    progress = [line for line in lines if " iter: " in line]
    assert [re.search(r" iter: (\d+)", line)[1] for line in progress] == ["19", "39"]
    for line in progress:
        assert re.search(r"eta: \d+:\d\d:\d\d\s+iter: \d+\s+total_loss: \d", line)
        names = set(re.findall(r"(\w+): ", line))
        assert names >= {"total_loss", "loss_ce", "loss_bbox", "loss_giou", "lr", "time"}
        assert not {"loss_ce_0", "loss_giou_enc", "class_error"} & names
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"loss_ce", "loss_ce_0", "loss_giou_enc", "class_error"} < set(metrics[0])
    row = next(row for row in metrics if row["iteration"] == 19)
    assert f"loss_bbox: {row['loss_bbox']:.4g}  " in progress[0]
    evaluated = re.findall(r"iteration (\d+), shapes: AP (\S+)  AP50 .*  APl -  AR \S+$", log, re.M)
    by_iteration = {row["iteration"]: row["bbox/AP"] for row in metrics if "bbox/AP" in row}
    assert [(int(i), ap) for i, ap in evaluated] == [
        (i, f"{ap:.2f}") for i, ap in sorted(by_iteration.items())
    ]
    assert list(by_iteration) == [29, 40]
    assert (tmp_path / "curves.png").is_file() and (tmp_path / "per_class.csv").is_file()
    assert re.search(r"class +boxes +AP .*\nlying +6 .*\nstanding +6 .*\n\(all\) +12 ", log)
