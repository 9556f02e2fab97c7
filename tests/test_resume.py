"""Resumed with another config: the config decides, and every difference is said."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.testing import assert_close

from detectron2_ddetr.engine import resume as resume_module
from detectron2_ddetr.engine.resume import (
    config_differences,
    fit_optimizer_state,
    found_by_all,
)
from detectron2_ddetr.engine.train_step import TrainStep
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import CfgNode

from .conftest import small_cfg
from .test_training import last_checkpoint, run, shapes  # noqa: F401


@pytest.fixture(scope="module")
def four_iterations(shapes, tmp_path_factory):  # noqa: F811
    """The folder of a training of four iterations of two images at 2e-4."""
    folder = tmp_path_factory.mktemp("four")
    run(shapes, folder, opts=["SOLVER.MAX_ITER", 4])
    return folder


@pytest.fixture
def resume(shapes, four_iterations, tmp_path):  # noqa: F811
    """Goes on in a copy of that folder; the log, and the last checkpoint."""

    def resume(*opts, expected=0):
        for path in four_iterations.iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
        log = run(shapes, tmp_path, "--resume", opts=opts, expected=expected)
        return log, last_checkpoint(tmp_path)["trainer"]

    return resume


def logged_rates(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["iteration"]: row["lr"] for row in rows if "lr" in row}


def test_rates_and_decay_are_those_of_the_config(resume, tmp_path):
    """Of every group: rate times factor, and decay; the moments go on."""
    log, trainer = resume(
        "SOLVER.MAX_ITER", 6, "SOLVER.BASE_LR", 5e-5, "SOLVER.WEIGHT_DECAY", 0.02,
        "SOLVER.BACKBONE_MULTIPLIER", 0.5, "SOLVER.LINEAR_PROJ_MULTIPLIER", 1.0,
    )  # fmt: skip
    assert "another SOLVER.BASE_LR: 0.0002 before, 5e-05 now; from now on" in log
    assert "another SOLVER.WEIGHT_DECAY: 0.0001 before, 0.02 now; from now on" in log
    assert "another SOLVER.MAX_ITER: 4 before, 6 now; from now on" in log
    assert log.count("resumed with another") == 5
    assert "the learning rate jumps from 2e-05 to 2.5e-05" in log  # of the backbone, the largest
    optimizer = trainer["_trainer"]["optimizer"]
    found = {(g["lr"], g["initial_lr"], g["weight_decay"]) for g in optimizer["param_groups"]}
    # Norms and biases have keys of their own for their decay, which is 1e-4 before and now.
    assert found == {(lr, lr, decay) for lr in (5e-5, 2.5e-5) for decay in (0.02, 1e-4)}
    assert {float(state["step"]) for state in optimizer["state"].values()} == {6.0}
    assert logged_rates(tmp_path) == pytest.approx({3: 2e-5, 5: 2.5e-5})


def test_a_longer_cosine_says_its_jump(shapes, tmp_path):  # noqa: F811
    """The rate goes on where the longer schedule is: (1 + cos(pi i / n)) / 2 of the base rate."""
    cosine = [
        "SOLVER.BACKBONE_MULTIPLIER",
        1.0,
        "SOLVER.LR_SCHEDULER_NAME",
        "WarmupCosineLR",
        "SOLVER.WARMUP_ITERS",
        0,
    ]
    run(shapes, tmp_path, opts=[*cosine, "SOLVER.MAX_ITER", 3])
    log = run(shapes, tmp_path, "--resume", opts=[*cosine, "SOLVER.MAX_ITER", 6])
    jump = re.search(r"the learning rate jumps from (\S+) to (\S+), .* at iteration 3", log)
    assert [float(x) for x in jump.groups()] == pytest.approx([0.0, 1e-4], abs=1e-9)
    expected = 2e-4 * (1 + torch.cos(torch.tensor(torch.pi * 5 / 6))) / 2
    assert logged_rates(tmp_path)[5] == pytest.approx(float(expected), rel=1e-5)


def test_what_the_checkpoint_outweighs_is_said(resume):
    _, before = resume("SOLVER.MAX_ITER", 5, "SEED", 77)
    log, after = resume("SOLVER.MAX_ITER", 5, "SEED", 77)
    assert "another SEED: 42 before, 77 now; no effect: the order of the images" in log
    assert before["hooks"]["StepSeed"] == after["hooks"]["StepSeed"] == {"seed": 42}


def test_the_place_in_the_data_survives_another_batch_size(resume):
    """8 images were seen in 4 iterations; two more of three make 14."""
    _, trainer = resume("SOLVER.MAX_ITER", 6, "SOLVER.IMS_PER_BATCH", 3)
    assert trainer["images"] == 14


def test_nothing_is_said_where_nothing_differs(resume):
    log, _ = resume("SOLVER.MAX_ITER", 4)
    assert "resumed with another" not in log and "jumps" not in log


def test_other_layers_are_refused_and_the_folder_stays(resume, tmp_path):
    log, _ = resume("SOLVER.MAX_ITER", 6, "MODEL.BACKBONE.FREEZE_AT", 2, expected=1)
    assert "error: this training cannot be resumed: of its parameters" in log
    assert "were trained and are not now, the first backbone." in log
    assert "MODEL.BACKBONE.FREEZE_AT (0 -> 2)" in log
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 4


def test_fewer_iterations_than_are_done_are_refused(resume, tmp_path):
    log, _ = resume("SOLVER.MAX_ITER", 3, expected=1)
    assert f"error: the training in '{tmp_path}' has done 4 iterations, and SOLVER.MAX_ITER" in log
    assert "is 3: to continue it, set that to more" in log
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 4


def test_machines_that_find_different_checkpoints_are_refused(tmp_path, monkeypatch):
    """One would wait for ever for what the other does not send."""
    checkpointer = SimpleNamespace(
        save_dir=str(tmp_path), get_checkpoint_file=lambda: str(tmp_path / "model_0000003.pth")
    )
    assert found_by_all(checkpointer)
    monkeypatch.setattr(resume_module.comm, "all_gather", lambda name: [name, ""])
    with pytest.raises(InputError, match="process 0: model_0000003.pth, process 1: none"):
        found_by_all(checkpointer)


def test_config_differences():
    cfg = small_cfg("SOLVER.STEPS", (3, 4))
    other = cfg.clone()
    assert config_differences(cfg.dump(), other) == {}
    other.merge_from_list(["SOLVER.STEPS", (3, 5), "OUTPUT_DIR", "elsewhere"])
    assert config_differences(cfg.dump(), other) == {"SOLVER.STEPS": ([3, 4], [3, 5])}
    before = cfg.dump().replace("NUM_QUERIES: 12", "OLD_KEY: 12")
    assert config_differences(before, cfg) == {
        "MODEL.DETR.NUM_QUERIES": (None, 12),
        "MODEL.DETR.OLD_KEY": (12, None),
    }


def test_a_training_goes_on_with_or_without_detectron2():
    """What is only in one of the configs since only one of them is detectron2's is no change."""
    cfg = small_cfg()
    with_it = cfg.clone()
    with_it.defrost()
    with_it.CUDNN_BENCHMARK, with_it.MODEL.RPN = False, CfgNode({"NMS_THRESH": 0.7})
    without = cfg.clone()
    without.defrost()
    for node, key in ((without, "CUDNN_BENCHMARK"), (without.MODEL, "RPN")):
        node.pop(key, None)
    assert config_differences(with_it.dump(), without) == {}
    assert config_differences(without.dump(), with_it) == {}
    before = with_it.dump()
    with_it.MODEL.RPN.NMS_THRESH = 0.5
    assert config_differences(before, with_it) == {"MODEL.RPN.NMS_THRESH": (0.7, 0.5)}


def test_moments_go_to_the_parameter_of_their_name():
    """Whatever the groups and their order: one update equals that of the optimiser that was."""
    a, b, c = (torch.nn.Parameter(torch.full((2,), float(i))) for i in range(3))
    gradients = {p: torch.tensor([1.0, -2.0]) * (i + 1) for i, p in enumerate((a, b, c))}

    def adam(groups):
        return torch.optim.AdamW([{"params": ps, "lr": lr} for ps, lr in groups])

    def step(optimizer, factor):
        for p, gradient in gradients.items():
            p.grad = factor * gradient
        optimizer.step()

    first = adam([([("a", a), ("b", b)], 0.1), ([("c", c)], 0.01)])
    step(first, 1.0)
    saved = {p: p.detach().clone() for p in (a, b, c)}
    state = copy.deepcopy(first.state_dict())
    step(first, -3.0)
    expected = [p.detach().clone() for p in (a, b, c)]
    with torch.no_grad():
        for p, value in saved.items():
            p.copy_(value)

    second = adam([([("c", c)], 0.01), ([("b", b)], 0.1), ([("a", a)], 0.1)])
    second.load_state_dict(fit_optimizer_state(state, second, {"KEY": (1, 2)}))
    step(second, -3.0)
    for p, value in zip((a, b, c), expected):
        assert_close(p.detach(), value, rtol=0, atol=0)

    third = adam([([("a", a), ("d", b)], 0.1)])
    with pytest.raises(InputError, match=r"2 were trained.*first b; 1 are trained.*first d.*KEY"):
        fit_optimizer_state(state, third, {"KEY": (1, 2)})


def test_mixed_precision_can_begin_on_resumption():
    """What the scaler of the gradients starts with is its own then, and loaded otherwise."""
    for scale, found in (({}, 8.0), ({"grad_scaler": {}}, 8.0), ({"grad_scaler": {"scale": 2}}, 2)):
        weight = torch.nn.Parameter(torch.ones(1))
        step = TrainStep(torch.nn.Identity(), [], torch.optim.AdamW([weight]))
        state = {"iteration": 3, "optimizer": step.optimizer.state_dict()}
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        whole = {**step.grad_scaler.state_dict(), **scale.get("grad_scaler", {})}
        step.load_state_dict(
            state | ({"grad_scaler": whole} if scale.get("grad_scaler") else scale)
        )
        assert step.grad_scaler.state_dict()["scale"] == found
