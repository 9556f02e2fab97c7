"""One training, whoever starts its processes."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from detectron2_ddetr.engine import launch
from detectron2_ddetr.errors import InputError

from .test_training import command, last_checkpoint, shapes  # noqa: F401


@pytest.fixture
def started(monkeypatch):
    """How many processes were started by us; none of the launchers' variables is set."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for _, size, rank in launch._OTHER_LAUNCHERS:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)
    calls = []
    monkeypatch.setattr(launch, "launch", lambda function, count, **_: calls.append(count))
    return calls


def arguments(num_gpus=1, num_machines=1, machine_rank=0):
    return SimpleNamespace(
        num_gpus=num_gpus, num_machines=num_machines, machine_rank=machine_rank, dist_url="auto"
    )


def test_torchrun_is_one_training(shapes, tmp_path):  # noqa: F811
    """Two processes, one folder: each row of the metrics once, and the batch is shared."""
    words, env = command(shapes, tmp_path, opts=["SOLVER.MAX_ITER", 2])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [words[0], *launcher, *words[1:]], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "World size: 2" in done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert len([row for row in rows if "total_loss" in row]) == 1
    assert last_checkpoint(tmp_path)["trainer"]["images"] == 4


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
    ],
)
def test_other_launchers_are_refused(started, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="has started . processes .*--num-gpus, or start torchrun"):
        launch.run_in_processes(print, arguments())
    assert not started


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script that starts them itself
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_processes_are_started_here(started, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launch.run_in_processes(print, arguments(num_gpus=3))
    assert started == [3]


@pytest.mark.parametrize(
    "variables", [{"SLURM_STEP_NUM_TASKS": "2"}, {"WORLD_SIZE": "2", "RANK": "0"}]
)
def test_one_process_on_each_machine_starts_the_others(started, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launch.run_in_processes(print, arguments(num_gpus=3, num_machines=2))
    assert started == [3]
    with pytest.raises(InputError):
        launch.run_in_processes(print, arguments())


def test_torchrun_and_num_gpus_contradict(started, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        launch.run_in_processes(print, arguments())
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="leave --num-gpus"):
        launch.run_in_processes(print, arguments(num_gpus=2))


@pytest.mark.parametrize(
    "numbers", [(0, 1, 0), (-1, 1, 0), (1, 0, 0), (1, 1, 3), (1, 2, 2), (1, 1, -1)]
)
def test_numbers_that_cannot_be(started, numbers):
    """Nothing would be started, or waited for without end."""
    with pytest.raises(InputError, match="--num-gpus .* must be at least 1"):
        launch.run_in_processes(print, arguments(*numbers))
    assert not started


@pytest.mark.parametrize(
    "num_gpus, given, threads", [(3, None, [2]), (16, None, [1]), (1, None, []), (3, "5", [])]
)
def test_processes_share_the_cores(monkeypatch, num_gpus, given, threads):
    """Eight cores here; who sets OMP_NUM_THREADS has decided."""
    done = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(launch.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(launch.torch, "set_num_threads", done.append)
    monkeypatch.setattr(launch, "launch", lambda function, *_, args, **__: function(*args))
    launch.run_in_processes(lambda args: done.append(args.num_gpus), arguments(num_gpus))
    assert done == [*threads, num_gpus]
