"""How images are padded for a backbone, whichever class it is."""

from torch import nn


def padding_of(backbone: nn.Module) -> dict[str, int | dict[str, int]]:
    """
    The arguments `size_divisibility` and `padding_constraints` of `ImageList.from_tensors`.

    They are attributes of detectron2's :class:`Backbone`, but its SwinTransformer raises where the
    first is asked for, its SimpleFeaturePyramid writes "size_divisiblity" in the second, and a
    module of another library has neither.
    """
    constraints = dict(getattr(backbone, "padding_constraints", {}))
    misspelt = constraints.pop("size_divisiblity", 0)
    return {
        "size_divisibility": getattr(backbone, "size_divisibility", 0) or misspelt,
        "padding_constraints": constraints,
    }
