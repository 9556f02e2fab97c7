"""Work on many files at once, with word of how long it will take."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

Item, Result = TypeVar("Item"), TypeVar("Result")

_CHUNK, _THREADS = 64, 8  # threads hide the latency of a disk or network, chunks their own cost
_FIRST_REPORT, _NEXT_REPORT = 2.0, 10.0  # seconds


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """
    `function` of each item, in their order.

    Args:
        what: is done, for the lines that say how far it is and how long the rest will take.
    """
    start = time.monotonic()
    due, done = start + _FIRST_REPORT, 0
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for found in threads.map(lambda chunk: [function(item) for item in chunk], chunks):
            done += len(found)
            now = time.monotonic()
            if now > due and done < len(items):
                left = (now - start) * (len(items) - done) / done
                logger.info("%s: %d of %d images, %.0f s left", what, done, len(items), left)
                due = now + _NEXT_REPORT
            yield from found
