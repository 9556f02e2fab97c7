"""Errors that are made to be read: the command lines show them without a traceback."""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator

from torch.multiprocessing import ProcessExitedException


class ExplainedError(Exception):
    """
    Says what is wrong, where, and what to do about it.

    Subclasses are also the built-in error that a caller in Python would expect.
    """

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError's would put the message in quotes


class InputError(ExplainedError, ValueError):
    """Something that was given does not fit: a config, a data set, a checkpoint, an argument."""


class UnknownKeyError(InputError, KeyError):
    """A config key that does not exist, or a name in one that nothing has."""


class MissingFileError(ExplainedError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class UnsupportedError(ExplainedError, NotImplementedError):
    """It needs detectron2, which is not installed."""


class NonFiniteError(ExplainedError, FloatingPointError):
    """Training met a loss or a gradient that is not finite."""


@contextlib.contextmanager
def explained(traceback: bool) -> Iterator[None]:
    """
    Ends the program with the message of an :class:`ExplainedError`, exit status 1.

    Args:
        traceback: let it through instead, for whoever wants to see where it comes from.
    """
    hide = _HideTraceback()
    # The two toolboxes log every exception of a training with its traceback.
    loggers = [logging.getLogger(f"detectron2.engine{end}") for end in ("", ".train_loop")]
    try:
        if not traceback:
            for logger in loggers:
                logger.addFilter(hide)
        yield
    except ExplainedError as error:
        if traceback:
            raise
        sys.exit(f"error: {explanation(error)}")
    except ProcessExitedException as error:
        if traceback:
            raise
        if error.exit_code < 0:  # otherwise it has said why
            sys.stderr.write(
                f"error: process {error.error_index} was killed ({error.signal_name}), by the "
                "system where memory was short, and the others were stopped; --resume goes on from "
                "the last checkpoint\n"
            )
            sys.exit(128 - error.exit_code)
        sys.exit(error.exit_code)
    finally:
        for logger in loggers:
            logger.removeFilter(hide)


class _HideTraceback(logging.Filter):
    """Drops the records of exceptions that explain themselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], ExplainedError))


def explanation(error: ExplainedError) -> str:
    """The message alone, also of an error that a data worker has sent as text."""
    sent = re.split(r"^detectron2_ddetr\.errors\.\w+: ", str(error), flags=re.MULTILINE)
    return sent[-1].strip()
