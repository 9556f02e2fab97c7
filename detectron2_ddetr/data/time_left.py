"""How far work on many items is, and how long the rest will take."""

import logging
import time

logger = logging.getLogger(__name__)

_FIRST_REPORT, _NEXT_REPORT = 2.0, 10.0  # seconds


class TimeLeft:
    """Logs a line after two seconds of work, and then every ten."""

    def __init__(self, what: str, total: int | None, unit: str = "images"):
        """
        Args:
            what: is done, or is worked on.
            total: of all items; None if nobody knows.
            unit: what they are called.
        """
        self._what, self._total, self._unit = what, total, unit
        self.done = 0
        self._start = time.monotonic()
        self._due = self._start + _FIRST_REPORT

    def add(self, count: int) -> None:
        """So many items more are done."""
        self.done += count
        now = time.monotonic()
        if now <= self._due or self.done == self._total:
            return
        self._due = now + _NEXT_REPORT
        if self._total is None:
            logger.info("%s: %d %s", self._what, self.done, self._unit)
            return
        left = in_words((now - self._start) * (self._total - self.done) / self.done)
        logger.info(
            "%s: %d of %d %s, %s left", self._what, self.done, self._total, self._unit, left
        )


def in_words(seconds: float) -> str:
    """Hours, also more than 24 of them, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
