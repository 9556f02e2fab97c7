"""The classes of a data set beside the rows of the head that they are."""

from collections.abc import Mapping, Sequence

from ..toolbox import MetadataCatalog

WIDTH = 100  # columns


def category_ids(name: str) -> list[int | str] | None:
    """By class number, of a registered data set; None if it has none."""
    ids = getattr(MetadataCatalog.get(name), "thing_dataset_id_to_contiguous_id", None)
    return sorted(ids, key=ids.get) if ids else None


def class_table(
    classes: Sequence[str], ids: Sequence[object], counts: Mapping[str, Sequence[int]]
) -> str:
    """
    A line for each class: the row of the class heads, which is the class number, the category id
    in the json, how many boxes it has, and its name.

    Args:
        ids: by class number; empty if there are none.
        counts: heading of a column -> the number of boxes by class number.
    """
    cells = [("row", "id", *counts, "name")]
    for number, name in enumerate(classes):
        identity = str(ids[number]) if number < len(ids) else ""
        cells.append((str(number), identity, *(str(c[number]) for c in counts.values()), name))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([*(f"{c:>{width}}" for c, width in zip(line[:-1], widths)), line[-1]])[:WIDTH]
        for line in cells
    )
