"""Which images of a data set are worth a look."""

from collections.abc import Sequence
from typing import Any

#: An image with more boxes than this is not chosen where others show the same classes.
CROWDED = 20


def choose_images(dataset_dicts: Sequence[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """
    Images that together show all classes, with as few of them as a greedy search finds.

    Each is the one with the most classes that the ones before it lack; of equal ones, the one with
    the most classes, then the first. When all classes have been shown, it begins again. Crowded
    images, and those without a box, are drawn only if all classes cannot be shown without them.

    Args:
        dataset_dicts: with "annotations", whose "category_id" are compared; crowd regions do not
            count.
        num_images: how many; all if there are not that many.
    """
    labels = [
        [a["category_id"] for a in d.get("annotations", ()) if not a.get("iscrowd", 0)]
        for d in dataset_dicts
    ]
    everything = set().union(*labels)
    chosen = _greedy(labels, num_images, crowded_last=True)
    if set().union(*(labels[i] for i in chosen)) != everything:
        fewest = _greedy(labels, num_images, crowded_last=False)
        if set().union(*(labels[i] for i in fewest)) == everything:
            chosen = fewest
    return [dataset_dicts[i] for i in chosen]


def _greedy(labels: Sequence[list[int]], num_images: int, *, crowded_last: bool) -> list[int]:
    """Indices of the images; `labels` are those of the boxes of each."""
    left, classes = list(range(len(labels))), [set(found) for found in labels]
    chosen: list[int] = []
    shown: set[int] = set()
    while left and len(chosen) < num_images:
        if not any(classes[i] - shown for i in left):
            shown = set()

        def worth(i: int) -> tuple[bool, bool, int, bool, int, int]:
            new, calm = len(classes[i] - shown), len(labels[i]) <= CROWDED
            return new > 0, calm or not crowded_last, new, calm, len(classes[i]), -i

        best = max(left, key=worth)
        left.remove(best)
        chosen.append(best)
        shown |= classes[best]
    return chosen
