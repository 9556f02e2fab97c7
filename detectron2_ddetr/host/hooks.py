"""What a default training does between its steps."""

import datetime
import logging
import time
from collections import Counter
from typing import Any, Callable

from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.timer import Timer

from . import comm
from .evaluation import flatten_results_dict
from .events import EventWriter
from .train_loop import HookBase

logger = logging.getLogger("detectron2.engine.hooks")


class IterationTimer(HookBase):
    """Records the time of each step as "time" and logs a summary in the end."""

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter = warmup_iter
        self._step_timer, self._total_timer = Timer(), Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        total, steps = time.perf_counter() - self._start_time, self._total_timer.seconds()
        count = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        total, hooks, whole = (
            str(datetime.timedelta(seconds=int(t))) for t in (total, total - steps, steps)
        )
        if count > 0 and steps > 0:
            speed = f"{count} iterations in {whole} ({steps / count:.4f} s / it)"
            logger.info(f"Overall training speed: {speed}")
        logger.info(f"Total training time: {total} ({hooks} on hooks)")

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        if self.trainer.storage.iter - self.trainer.start_iter + 1 >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


class PeriodicWriter(HookBase):
    """Calls the writers every `period` steps and in the end."""

    def __init__(self, writers: list[EventWriter], period: int = 20):
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's checkpointer as a hook."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class LRScheduler(HookBase):
    """Records "lr" and steps the scheduler; both objects default to the trainer's."""

    def __init__(self, optimizer=None, scheduler=None):
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer) -> int:
        """Return the largest group, or, if all hold one parameter, one with the commonest lr."""
        groups = optimizer.param_groups
        keys = [len(group["params"]) for group in groups]
        if max(keys) > 1:
            return keys.index(max(keys))
        keys = [group["lr"] for group in groups]
        return keys.index(Counter(keys).most_common(1)[0][0])

    def after_step(self) -> None:
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        logger.info("Loading scheduler from state_dict ...")
        self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Records the nested dict of results every `eval_period` steps and in the end."""

    def __init__(self, eval_period: int, eval_function: Callable, eval_after_train: bool = True):
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = flatten_results_dict(self._func() or {})
        self.trainer.storage.put_scalars(**results, smoothing_hint=False)
        comm.synchronize()  # evaluation may take some ranks longer

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        del self._func  # it likely refers to the trainer
