"""The classes of a data set beside the rows of the head that they are."""

from ..toolbox import MetadataCatalog
from .coco_dataset import coco_dataset


def category_ids(name: str) -> list[int | str] | None:
    """By class number, of a registered data set; None if it has none."""
    ids = getattr(MetadataCatalog.get(name), "thing_dataset_id_to_contiguous_id", None)
    return sorted(ids, key=ids.get) if ids else None


def class_table(name: str) -> str:
    """
    A line for each class of a registered data set: the row of the class heads, which is the class
    number, the category id in its json, how many annotations it has there, and its name.
    """
    metadata = MetadataCatalog.get(name)
    classes = list(getattr(metadata, "thing_classes", None) or ())
    ids = category_ids(name) or [""] * len(classes)
    dataset = coco_dataset(name)
    counts: dict[str, int] = {}
    if dataset is not None and dataset.data().class_names is not None:
        counts = dict(zip(dataset.data().class_names, dataset.data().class_counts()))
    cells = [("row", "id", "annotations", "name")]
    for number, (identity, class_name) in enumerate(zip(ids, classes)):
        count = counts.get(class_name, "")
        cells.append((str(number), str(identity), str(count), class_name))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([*(f"{cell:>{width}}" for cell, width in zip(line[:3], widths)), line[3]])
        for line in cells
    )
