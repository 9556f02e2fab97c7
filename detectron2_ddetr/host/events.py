"""Scalars recorded during training, and who writes them."""

import datetime
import itertools
import json
import logging
import os
from collections import defaultdict
from contextlib import contextmanager
from typing import Iterator

import torch
from fvcore.common.history_buffer import HistoryBuffer

from .file_io import PathManager

_STORAGES: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the innermost open storage."""
    assert _STORAGES, "get_event_storage() needs to be inside a 'with EventStorage(...)' context"
    return _STORAGES[-1]


class EventStorage:
    """Histories of named scalars, used as a context."""

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._current_prefix = ""

    def put_scalar(
        self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Record a scalar; `smoothing_hint` tells writers whether it is noisy."""
        name, value = self._current_prefix + name, float(value)
        cur_iter = self.iter if cur_iter is None else cur_iter
        self._history[name].update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float
    ) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the newest (value, iteration) of each scalar."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like :meth:`latest`, with medians of the noisy ones."""
        return {
            k: (self._median(k, window_size) if self._smoothing_hints[k] else v, itr)
            for k, (v, itr) in self._latest_scalars.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Count the values of the last `window_size` iterations."""
        data = self._history[name].values()
        first = data[-1][1] - window_size
        return sum(1 for _ in itertools.takewhile(lambda item: item[1] > first, reversed(data)))

    def _median(self, name: str, window_size: int) -> float:
        return self._history[name].median(self.count_samples(name, window_size))

    def step(self) -> None:
        self.iter += 1

    def __enter__(self) -> "EventStorage":
        _STORAGES.append(self)
        return self

    def __exit__(self, *exc) -> None:
        assert _STORAGES.pop() is self

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put `name/` before all names recorded inside."""
        old, self._current_prefix = self._current_prefix, name.rstrip("/") + "/"
        yield
        self._current_prefix = old


class EventWriter:
    """Reads the current storage when told to."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JSONWriter(EventWriter):
    """Appends one json object per iteration to a file."""

    def __init__(self, json_file: str, window_size: int = 20):
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        rows: dict[int, dict] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, itr) in latest.items():
            if itr > self._last_write:
                rows[itr] |= {name: value, "iteration": itr}
        self._last_write = max(rows, default=self._last_write)
        for row in rows.values():
            self._file.write(json.dumps(row, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class CommonMetricPrinter(EventWriter):
    """Logs losses, times, the learning rate and the time left in one line."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self._logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self) -> None:
        storage, window = get_event_storage(), self._window_size
        if storage.iter == self._max_iter:
            return  # training is over
        known, eta = storage.latest(), ""
        if self._max_iter is not None and "time" in known:
            left = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            eta = f"eta: {datetime.timedelta(seconds=int(left))}  "
        scalars = {k: f"{k}: {storage._median(k, window):.4g}" for k in storage.histories()}
        losses = "  ".join(v for k, v in scalars.items() if "loss" in k)
        metrics = "  ".join(v for k, v in scalars.items() if "[metric]" in k)
        times = ""
        if "time" in known:
            average, last = storage.history("time").global_avg(), known["time"][0]
            times += f"time: {average:.4f}  last_time: {last:.4f}  "
        if "data_time" in known:
            average = storage.history("data_time").avg(storage.count_samples("data_time", window))
            times += f"data_time: {average:.4f}  last_data_time: {known['data_time'][0]:.4f}  "
        lr = f"{known['lr'][0]:.5g}" if "lr" in known else "N/A"
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M"
        line = f" {eta}iter: {storage.iter}  {losses}  {metrics}  {times} lr: {lr}  {memory}"
        self._logger.info(line)
