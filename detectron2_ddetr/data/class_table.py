"""The classes of a data set beside the rows of the head that they are."""

from ..toolbox import MetadataCatalog
from .coco_dataset import coco_dataset


def class_table(name: str) -> str:
    """
    A line for each class of a registered data set: the row of the class heads, which is the class
    number, the category id in its json, how many annotations it has there, and its name.
    """
    metadata = MetadataCatalog.get(name)
    classes = list(getattr(metadata, "thing_classes", None) or ())
    ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", None) or {}
    id_of = {number: identity for identity, number in ids.items()}
    dataset = coco_dataset(name)
    counts: dict[str, int] = {}
    if dataset is not None and dataset.data().class_names is not None:
        counts = dict(zip(dataset.data().class_names, dataset.data().class_counts()))
    cells = [("row", "id", "annotations", "name")]
    for number, class_name in enumerate(classes):
        count = counts.get(class_name, "")
        cells.append((str(number), str(id_of.get(number, "")), str(count), class_name))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([*(f"{cell:>{width}}" for cell, width in zip(line[:3], widths)), line[3]])
        for line in cells
    )
