"""What the guard of a training saves, and what it does not."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from detectron2_ddetr.engine import interruption
from detectron2_ddetr.engine.interruption import InterruptionGuard, TrainingInterrupted


@pytest.fixture
def training():
    """A guard around a training of 8 iterations, in its last one; what it saves is in `saved`."""
    saved = []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    loader = SimpleNamespace(waiting=False)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2))
    guard = InterruptionGuard(SimpleNamespace(save=saved.append), optimizer, loader)
    guard.trainer = SimpleNamespace(iter=7, start_iter=0, max_iter=8, completed_iter=6, model=model)
    guard.before_train()
    guard.before_step()
    yield SimpleNamespace(
        guard=guard, saved=saved, optimizer=optimizer, trainer=guard.trainer, loader=loader
    )
    guard.after_train()


def test_signal_in_the_last_iteration(training):
    """The step is completed, and saved although no iteration is left."""
    os.kill(os.getpid(), signal.SIGTERM)
    training.optimizer.step()
    with pytest.raises(TrainingInterrupted) as stop:
        training.guard.after_step()
    assert stop.value.code == 128 + signal.SIGTERM
    training.guard.after_train()
    assert training.saved == ["model_0000007"]


def test_resumed_after_the_last_iteration(training):
    """The periodic checkpointer had no time to save the end of the training."""
    training.trainer.start_iter, training.trainer.completed_iter = 8, 7
    training.guard.before_train()
    assert training.saved == ["model_final"]


def test_error_before_the_update(training):
    """The iteration before is saved."""
    training.guard.after_train()
    assert training.saved == ["model_0000006"]


def test_error_in_the_update(training):
    """Half an update is not a state to continue from."""
    training.optimizer.step()
    training.guard.after_train()
    assert training.saved == []


def test_finished(training):
    """The periodic checkpointer has saved it."""
    training.optimizer.step()
    training.guard.after_step()
    training.trainer.iter = 8
    training.guard.after_train()
    assert training.saved == []


def test_same_signal_again_stops_at_once(training):
    """Another one does not: a dying launcher turns SIGTERM into SIGINT."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(TrainingInterrupted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_signal_while_waiting_for_data(training):
    """Nothing of the iteration has begun, and the data may never come."""
    training.loader.waiting = True
    with pytest.raises(TrainingInterrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    training.guard.after_train()
    assert training.saved == ["model_0000006"]


def test_a_process_among_others_does_not_leave_them(training, monkeypatch):
    training.loader.waiting = True
    monkeypatch.setattr(interruption.comm, "get_world_size", lambda: 2)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("complete", [False, True])
def test_running_statistics_belong_to_their_iteration(training, complete):
    """Those of a step that was not completed are those of before; of a complete one they stay."""
    norm = training.trainer.model[1]
    before = {k: v.clone() for k, v in norm.named_buffers()}
    pixels = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])
    norm(pixels)
    moved = {k: v.clone() for k, v in norm.named_buffers()}
    assert moved["num_batches_tracked"] == 1
    assert torch.allclose(moved["running_mean"], torch.tensor([0.15, 0.4]))  # 0.1 of the means
    if complete:
        training.optimizer.step()
        training.guard.after_step()
    training.guard.after_train()
    assert training.saved == [f"model_000000{7 if complete else 6}"]
    expected = moved if complete else before
    assert all(torch.equal(v, expected[k]) for k, v in norm.named_buffers())
