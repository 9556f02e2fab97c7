"""What the guard of a training saves, and what it does not."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from detectron2_ddetr.engine.interruption import InterruptionGuard, TrainingInterrupted


@pytest.fixture
def training():
    """A guard around a training of 8 iterations, in its last one; what it saves is in `saved`."""
    saved = []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    guard = InterruptionGuard(SimpleNamespace(save=saved.append), optimizer)
    guard.trainer = SimpleNamespace(iter=7, max_iter=8, completed_iter=6)
    guard.before_train()
    guard.before_step()
    yield SimpleNamespace(guard=guard, saved=saved, optimizer=optimizer, trainer=guard.trainer)
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
