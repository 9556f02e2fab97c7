"""Work on many files at once, with word of how long it will take."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .time_left import TimeLeft

Item, Result = TypeVar("Item"), TypeVar("Result")

_CHUNK, _THREADS = 64, 8  # threads hide the latency of a disk or network, chunks their own cost


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """
    `function` of each item, in their order.

    Args:
        what: is done, for the lines that say how far it is and how long the rest will take.
    """
    progress = TimeLeft(what, len(items))
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for found in threads.map(lambda chunk: [function(item) for item in chunk], chunks):
            progress.add(len(found))
            yield from found
