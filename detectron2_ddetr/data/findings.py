"""What a check of an annotation file finds: problems, which end the run, and mere notes."""

import reprlib
from collections.abc import Iterable, Sequence

from ..errors import InputError

MAX_KINDS = 10
MAX_EXAMPLES = 3

_repr = reprlib.Repr()
_repr.maxlist, _repr.maxstring, _repr.maxlong, _repr.maxother = 8, 80, 40, 60


def shown(value: object) -> str:
    """`value` as in a message, cut where it is long or deep."""
    return _repr.repr(value)


def listed(items: Sequence[object], limit: int = 5) -> str:
    """The first few, separated by commas."""
    return ", ".join(map(str, items[:limit])) + (", ..." if len(items) > limit else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """ "1 box" or "2 boxes": `plural` where it is not `noun` with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


class Findings:
    """Problems of one file by kind, and notes by whom they concern."""

    def __init__(self, json_file: str):
        self.json_file = json_file
        self._problems: dict[str, tuple[str, list[str]]] = {}
        #: (audience, line) of each: audience is "all", "train" or "test".
        self.notes: list[tuple[str, str]] = []

    def problem(self, kind: str, who: str, text: str) -> None:
        """
        Args:
            kind: problems of one kind make one line: the first in full, the others by name.
            who: the record it is about.
            text: what is wrong with it and the remedy.
        """
        if kind in self._problems:
            self._problems[kind][1].append(who)
        else:
            self._problems[kind] = (f"{who}: {text}" if who else text, [])

    def problems(self, kind: str, found: Iterable[tuple[str, str]]) -> None:
        """:meth:`problem` for each (who, text)."""
        for who, text in found:
            self.problem(kind, who, text)

    def note(self, text: str, audience: str = "all") -> None:
        """One line that does not stop anything."""
        self.notes.append((audience, _printable(f"{self.json_file}: {text}")))

    @property
    def has_problems(self) -> bool:
        return bool(self._problems)

    def raise_problems(self) -> None:
        """
        Raises:
            InputError: names the file and each kind of problem, if there is any.
        """
        if not self._problems:
            return
        lines = []
        for text, others in list(self._problems.values())[:MAX_KINDS]:
            more = f" ({len(others)} more: {listed(others, MAX_EXAMPLES)})" if others else ""
            lines.append(f"  {len(lines) + 1}. {text}{more}")
        rest = len(self._problems) - len(lines)
        if rest > 0:
            lines.append(f"  ... and {rest} more kinds")
        count = sum(1 + len(others) for _, others in self._problems.values())
        raise InputError(
            _printable("\n".join([f"{self.json_file}: {counted(count, 'problem')} found", *lines]))
        )


def _printable(text: str) -> str:
    """json can hold halves of surrogate pairs, which no stream can print."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
