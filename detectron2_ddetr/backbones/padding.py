"""How images are padded for a backbone, whichever class it is."""

import math

from torch import nn


def padding_of(backbone: nn.Module, size_divisibility: int = 1) -> dict[str, int | dict[str, int]]:
    """
    The arguments `size_divisibility` and `padding_constraints` of `ImageList.from_tensors`.

    They are attributes of detectron2's :class:`Backbone`, but its SwinTransformer raises where the
    first is asked for, its SimpleFeaturePyramid writes "size_divisiblity" in the second, and a
    module of another library has neither.

    Args:
        size_divisibility: what height and width are a multiple of besides.
    """
    constraints = dict(getattr(backbone, "padding_constraints", {}))
    misspelt = constraints.pop("size_divisiblity", 0)
    needed = getattr(backbone, "size_divisibility", 0) or misspelt
    # detectron2 goes by the constraint where there is one.
    needed = constraints.get("size_divisibility", 0) or needed
    common = math.lcm(needed or 1, size_divisibility)
    if "size_divisibility" in constraints:
        constraints["size_divisibility"] = common
    return {"size_divisibility": common, "padding_constraints": constraints}
