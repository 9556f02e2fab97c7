"""COCO's classes, which the checkpoints of other projects do not name."""

from collections.abc import Sequence

_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis,
    snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
    racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
    orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
    toothbrush
"""

#: Of the 80 detection classes, in the order of their ids.
COCO_CLASSES = [" ".join(name.split()) for name in _NAMES.split(",")]

#: COCO's ids of its 80 detection classes, in the order of the contiguous class indices.
COCO_CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def coco_class_names(num_rows: int) -> list[str] | None:
    """
    The names of COCO's classes by row; "" for rows that no class has.

    Args:
        num_rows: with 91, the row of a class is its category id; with 80, they are the classes in
            the order of their ids.

    Returns:
        None for another number of rows.
    """
    by_id = dict(zip(COCO_CATEGORY_IDS, COCO_CLASSES))
    return {80: list(COCO_CLASSES), 91: [by_id.get(row, "") for row in range(91)]}.get(num_rows)


def are_coco_classes(names: Sequence[str]) -> bool:
    """Whether these are COCO's by row, whatever the rows that no class has are called."""
    expected = coco_class_names(len(names))
    return expected is not None and all(b in ("", a) for a, b in zip(names, expected))
