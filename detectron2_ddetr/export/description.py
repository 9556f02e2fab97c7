"""What an exported file says of itself: classes, what is done to images, sizes, precision."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError

#: What the description is called inside a file.
KEY = "detectron2_ddetr"


@dataclass(frozen=True)
class Description:
    """
    Attributes:
        format: the name of the format, see :data:`.formats.FORMATS`.
        architecture: MODEL.META_ARCHITECTURE.
        precision: of weights and arithmetic, "float32", "float16" or "bfloat16".
        classes: {"row", "id", "name"} each: the label, the category id in the data that it was
            trained on, and the name; the last two None where they are not known.
        size: [height, width] of all images, padding included; None for any size.
        smallest: px of a side of an image, where any size is taken.
        preprocessing: what has to be done to an image, and what is done inside.
        inputs, outputs: of the program, in words, by name.
        versions: of what has written it.
    """

    format: str
    architecture: str
    precision: str
    classes: list[dict[str, Any]]
    size: list[int] | None
    smallest: int
    preprocessing: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    versions: dict[str, str]

    def text(self) -> str:
        """As json."""
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str, path: str) -> "Description":
        """
        Raises:
            InputError: if it is none.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} has no description of its classes and images ({error}): it was not "
                "written by `ddetr export`, or by another version of it; export the model again"
            ) from error

    @property
    def class_names(self) -> list[str] | None:
        """By row; None if they are not known."""
        names = [row["name"] for row in self.classes]
        return None if None in names else names

    @property
    def category_ids(self) -> list[int | str] | None:
        """By row; None if they are not known."""
        ids = [row["id"] for row in self.classes]
        return None if None in ids else ids


def class_table(
    num_classes: int, names: Sequence[str] | None, ids: Sequence[int | str] | None
) -> list[dict[str, Any]]:
    """{"row", "id", "name"} of each class."""
    nothing = [None] * num_classes
    rows = zip(ids or nothing, names or nothing, strict=True)
    return [{"row": row, "id": i, "name": name} for row, (i, name) in enumerate(rows)]
