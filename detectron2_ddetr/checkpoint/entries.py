"""What a checkpoint has beside the weights: the names of these entries."""

from typing import Any

#: Whether its model refines boxes layer by layer, which tensors alone do not tell.
REFINES = "with_box_refine"
#: Whether its backbone is dilated (DC5), which no tensor tells.
DILATED = "dilation"
#: The names of its model's classes, in the order of the class numbers.
CLASS_NAMES = "class_names"
#: The category ids of these classes in the data that it was trained on.
CATEGORY_IDS = "category_ids"
#: Of a converted file: what it was made from.
SOURCE = "source"
#: Of the weights, as whoever made the file knows it.
LICENCE = "licence"


def dilated_of(checkpoint: dict[str, Any]) -> bool | None:
    """
    Whether a checkpoint says that its backbone is dilated, as the arguments of the training do in
    those of the authors; None if it says nothing.
    """
    found = checkpoint.get(DILATED, getattr(checkpoint.get("args"), DILATED, None))
    return found if isinstance(found, bool) else None
