"""The folder of a run belongs to one training at a time, and to one training at all."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator

from ..errors import InputError
from ..toolbox import comm

logger = logging.getLogger(__name__)

#: Tag of the state before the first iteration, by which nothing would be lost.
INITIAL = "model_initial"

#: The folders that this process has locked.
_locked: set[str] = set()


def check_run_folder(folder: str, resume: bool) -> None:
    """
    Args:
        resume: the training is to continue what `folder` has.

    Raises:
        InputError: if another process is training in `folder`, or it holds the iterations of a
            training that is not to be continued.
    """
    with locked(folder):
        pass
    if not resume and (what := _last_training(folder)):
        raise InputError(
            f"OUTPUT_DIR {folder!r} holds a training, {what}, which would be overwritten: add "
            "--resume to continue it, set OUTPUT_DIR to another folder, or remove this one"
        )


def _last_training(folder: str) -> str:
    """What shows that iterations were trained here; "" if nothing does."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    models = [name for name in names if re.fullmatch(r"model_(\d{7}|final)\.pth", name)]
    metrics = os.path.join(folder, "metrics.json")
    if models:
        return f"{models[-1]}" + (f" and {len(models) - 1} more" if len(models) > 1 else "")
    return "metrics.json" if os.path.isfile(metrics) and os.path.getsize(metrics) else ""


def checkpoint_before(folder: str, iteration: int) -> str:
    """The name of the newest checkpoint of a training before that of an iteration."""
    numbers = [re.fullmatch(r"model_(\d{7})\.pth", name) for name in os.listdir(folder)]
    earlier = [int(found[1]) for found in numbers if found and int(found[1]) < iteration]
    return f"model_{max(earlier):07d}.pth" if earlier else f"{INITIAL}.pth"


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """
    Keeps other processes from training in `folder`. The lock ends with the process, however that
    ends, and with the outermost of several; nothing is locked in a folder that does not exist.

    Raises:
        InputError: if another process has it.
    """
    path = os.path.realpath(folder)
    if path in _locked or not os.path.isdir(folder):
        yield
        return
    try:
        file = open(os.path.join(folder, ".lock"), "a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {folder!r}: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                who = file.read().strip() or "another process"
                raise InputError(
                    f"OUTPUT_DIR {folder!r} is in use by {who}: two trainings would write the "
                    "same files. Set OUTPUT_DIR to another folder, or wait for that one"
                ) from error
            logger.warning(
                f"OUTPUT_DIR {folder!r} cannot be locked ({error.strerror}); see to it that no "
                "other training writes there"
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        _locked.add(path)
        try:
            yield
        finally:
            _locked.remove(path)


def require_folder(folder: str, *, make: bool = False) -> None:
    """
    Before work is done that is to be written there.

    Args:
        make: it, if it is not there.

    Raises:
        InputError: if it is not there, or cannot be written to.
    """
    try:
        if make:
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder!r} cannot be made: {error.strerror}") from error
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InputError(f"folder {folder!r} does not exist, or cannot be written to")


@contextlib.contextmanager
def kept_unless_done(path: str) -> Iterator[None]:
    """If what follows fails, the file is as it was before, if there was one."""
    if not (comm.is_main_process() and os.path.isfile(path)):
        yield
        return
    with open(path, "rb") as file:
        before = file.read()
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            with open(path, "wb") as file:
                file.write(before)
