"""What happens between the steps of a training."""

import time
from typing import Any, Callable, Iterator

from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from .engine import HookBase, MetricsWriter


class IterationTimer(HookBase):
    """Records the time of each step but the first two as "time"."""

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        if self.trainer.iter >= self.trainer.start_iter + 2:
            self.trainer.storage.put_scalar("time", time.perf_counter() - self._start)


class PeriodicWriter(HookBase):
    """Calls the writers every `period` steps and in the end."""

    def __init__(self, writers: list[MetricsWriter], period: int = 20):
        self._writers, self._period = writers, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's checkpointer as a hook."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class LRScheduler(HookBase):
    """Records the rate of the largest group as "lr" and steps the trainer's scheduler."""

    def after_step(self) -> None:
        group = max(self.trainer.optimizer.param_groups, key=lambda g: len(g["params"]))
        self.trainer.storage.put_scalar("lr", group["lr"], smoothing_hint=False)
        self.trainer.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self.trainer.scheduler, k) for k in ("base_lrs", "last_epoch")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self.trainer.scheduler).update(state_dict)


def _flatten(results: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Turn {"a": {"b": 1}} into ("a/b", 1)."""
    for key, value in results.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


class EvalHook(HookBase):
    """Records the nested dict of results every `eval_period` steps and in the end."""

    def __init__(self, eval_period: int, eval_function: Callable[[], dict]):
        self._period, self._func = eval_period, eval_function

    def _do_eval(self) -> None:
        for name, value in _flatten(self._func()):
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
