"""Errors that are made to be read: the command lines show them without a traceback."""


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
    """A config key that does not exist."""


class MissingFileError(ExplainedError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class NonFiniteError(ExplainedError, FloatingPointError):
    """Training met a loss or a gradient that is not finite."""
