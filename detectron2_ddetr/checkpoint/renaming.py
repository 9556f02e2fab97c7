"""Names of tensors in another project <-> names here, by one table that is read both ways."""

import re
from collections.abc import Sequence


class Renaming:
    """
    A table of how names begin, there and here; what follows is the same on both sides.

    The longest beginning that fits is taken. A `*` is a number; those of a name keep their order.
    """

    def __init__(self, table: Sequence[tuple[str, str]]):
        """
        Args:
            table: (beginning there, beginning here).
        """
        self._to_here = _compiled(table)
        self._to_there = _compiled([(here, there) for there, here in table])

    def to_here(self, name: str) -> str | None:
        """The name here; None for one that the table does not have."""
        return _renamed(name, self._to_here)

    def to_there(self, name: str) -> str | None:
        """The name there; None for one that the table does not have."""
        return _renamed(name, self._to_there)


def behind(there: str, here: str, table: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows of a table with all names behind `there` and `here`."""
    return [(there + theirs, here + ours) for theirs, ours in table]


def _compiled(table: Sequence[tuple[str, str]]) -> list[tuple[re.Pattern, str]]:
    rows = sorted(table, key=lambda row: len(row[0]), reverse=True)
    return [(re.compile(re.escape(old).replace(r"\*", r"(\d+)")), new) for old, new in rows]


def _renamed(name: str, rows: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, new in rows:
        if matched := pattern.match(name):
            numbers = iter(matched.groups())
            return re.sub(r"\*", lambda _: next(numbers), new) + name[matched.end() :]
    return None
