"""Ctrl-C, SIGTERM and errors leave a checkpoint of the last complete iteration."""

import logging
import os
import signal
import threading

import torch
import torch.distributed as dist

from ..checkpoint.checkpointer import Checkpointer
from ..toolbox import HookBase, comm
from .run_folder import INITIAL
from .train_step import LastBatch

logger = logging.getLogger(__name__)


class TrainingInterrupted(SystemExit):
    """Training stopped on a signal, after saving. The exit status is 128 plus the signal."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class InterruptionGuard(HookBase):
    """
    Saves what would be lost. Goes right after the hook that steps the learning rate.

    A signal during a step takes effect when the step is complete, on all processes together;
    otherwise (during evaluation, say, or where a single process waits for data) at once. The same
    again stops without waiting.

    What the forward pass of a step changes (the running statistics of BatchNorm) is put back when
    the step does not end in an update.
    """

    def __init__(
        self, checkpointer: Checkpointer, optimizer: torch.optim.Optimizer, loader: LastBatch
    ):
        self._checkpointer = checkpointer
        self._loader = loader
        self._buffers: dict[str, torch.Tensor] = {}
        self._previous = {}
        self._signum = 0
        self._in_step = False
        # Between the start of an update and the end of its step the state belongs to no iteration.
        self._updating = False
        optimizer.register_step_pre_hook(lambda *_: self._set_updating(True))

    def _set_updating(self, updating: bool) -> None:
        self._updating = updating

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._on_signal)
        if self.trainer.completed_iter < 0:
            # So that there is always something to resume from, and a directory that cannot be
            # written to is found out now.
            self._save()
        elif self.trainer.start_iter >= self.trainer.max_iter:
            # A stop in the last iteration came before its checkpoint.
            self._checkpointer.save("model_final")

    def before_step(self) -> None:
        self._buffers = {k: v.clone() for k, v in self.trainer.model.named_buffers()}
        self._in_step = True

    def update_skipped(self) -> None:
        """The optimiser refused to update: the state is still that of the iteration before."""
        self._updating = False

    def after_step(self) -> None:
        self.trainer.completed_iter = self.trainer.iter
        self._updating = self._in_step = False
        signum = self._agree(self._signum)
        if signum:
            raise TrainingInterrupted(signum)

    def after_train(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        trainer = self.trainer
        if trainer.iter >= trainer.max_iter:
            return  # finished
        if self._updating:
            logger.error("stopped in the middle of an update; resume from the checkpoint before it")
            return
        if self._in_step:
            for name, buffer in trainer.model.named_buffers():
                buffer.copy_(self._buffers[name])
        self._save()
        logger.error(
            f"training stopped after {trainer.completed_iter + 1} of {trainer.max_iter} "
            "iterations; --resume continues there"
        )

    def _save(self) -> None:
        completed = self.trainer.completed_iter
        self._checkpointer.save(INITIAL if completed < 0 else f"model_{completed:07d}")

    def _on_signal(self, signum: int, frame: object) -> None:
        name = signal.Signals(signum).name
        # Alone: other processes would wait for ever for one that leaves them.
        idle = self._loader.waiting and comm.get_world_size() == 1
        if not self._in_step or idle or self._signum == signum:
            raise TrainingInterrupted(signum)
        if self._signum:
            return  # SIGTERM to a whole process group arrives twice: as such, and as SIGINT when
            # the launcher has died of it
        os.write(2, f"\n{name}: stopping after this iteration (again: at once)\n".encode())
        self._signum = signum

    def _agree(self, signum: int) -> int:
        """The largest signal number of all processes, so that none waits for another for ever."""
        if comm.get_world_size() == 1:
            return signum
        flag = torch.tensor(signum, device=next(self.trainer.model.parameters()).device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)
