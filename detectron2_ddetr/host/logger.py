"""Logging to stdout and to a file."""

import atexit
import functools
import logging
import os
import sys
import time

from termcolor import colored

from .file_io import PathManager

_LAST_LOGGED: dict[tuple[str, int], float] = {}


@functools.lru_cache()  # a second call with the same arguments must not add handlers
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """
    Log to stdout on rank 0, and on all ranks to `output`.

    Args:
        output: a file ending with .txt or .log, or a directory for ``log.txt``.
        abbrev_name: what to write instead of `name`; "d2" for detectron2 by default.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    streams = [sys.stdout] if configure_stdout and distributed_rank == 0 else []
    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        filename += f".rank{distributed_rank}" if distributed_rank > 0 else ""
        PathManager.mkdirs(os.path.dirname(filename))
        streams.append(_open_log(filename))
    for stream in streams:
        handler = logging.StreamHandler(stream)
        head, abbrev = "[%(asctime)s] %(name)s %(levelname)s: ", None
        if stream is sys.stdout and color:
            head, abbrev = colored("[%(asctime)s %(name)s]: ", "green"), abbrev_name
        handler.setFormatter(_Formatter(head + "%(message)s", name, abbrev))
        logger.addHandler(handler)
    return logger


class _Formatter(logging.Formatter):
    def __init__(self, fmt: str, name: str, abbrev: str | None):
        super().__init__(fmt, datefmt="%m/%d %H:%M:%S")
        self._name, self._abbrev = name, abbrev

    def formatMessage(self, record: logging.LogRecord) -> str:
        if self._abbrev is None:
            return super().formatMessage(record)
        full, prefix = record.name, f"{self._abbrev}." if self._abbrev else ""
        record.name = full.replace(f"{self._name}.", prefix)
        line = super().formatMessage(record)
        record.name = full  # other handlers share the record
        if record.levelno < logging.WARNING:
            return line
        return f"{colored(record.levelname, 'red', attrs=['blink'])} {line}"


@functools.lru_cache(maxsize=None)  # loggers of different names share one file
def _open_log(filename: str):
    stream = PathManager.open(filename, "a")
    atexit.register(stream.close)
    return stream


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log at most once in `n` seconds from the calling line."""
    caller = sys._getframe(1)
    key = (caller.f_code.co_filename, caller.f_lineno)
    if time.time() - _LAST_LOGGED.get(key, -float("inf")) >= n:
        _LAST_LOGGED[key] = time.time()
        logging.getLogger(name or caller.f_globals["__name__"]).log(lvl, msg)
