"""The networks of DAT that its authors published, by what people call them, and a small one."""

from typing import Any


def _dat(width: int, depth: int, heads: int, groups: int, drop_path_rate: float) -> dict[str, Any]:
    """Windows in the first two stages, then windows and deformable attention in turn."""
    return {
        "dim_stem": width,
        "dims": [width, 2 * width, 4 * width, 8 * width],
        "depths": [2, 2, depth, 2],
        "stage_spec": ["LS", "LS", "LD" * (depth // 2), "LD"],
        "heads": [heads, 2 * heads, 4 * heads, 8 * heads],
        "groups": [-1, -1, groups, 2 * groups],
        "use_pes": [False, False, True, True],
        "strides": [-1, -1, 1, 1],
        "offset_range_factor": [-1, -1, 2, 2],
        "drop_path_rate": drop_path_rate,
    }


def _dat_plus_plus(
    width: int, heads: int, groups: list[int], drop_path_rate: float
) -> dict[str, Any]:
    """Neighbourhood and deformable attention in turn, with convolutions."""
    return {
        "dim_stem": width,
        "dims": [width, 2 * width, 4 * width, 8 * width],
        "depths": [2, 4, 18, 2],
        "stage_spec": ["ND", "NDND", "ND" * 9, "DD"],
        "heads": [heads, 2 * heads, 4 * heads, 8 * heads],
        "groups": groups,
        "use_pes": [True] * 4,
        "strides": [8, 4, 2, 1],
        "offset_range_factor": [-1] * 4,
        "use_dwc_mlps": [True] * 4,
        "use_lpus": [True] * 4,
        "use_conv_patches": True,
        "drop_path_rate": drop_path_rate,
    }


#: Arguments of :class:`DAT`; the rates of stochastic depth are those of training on ImageNet.
DAT_SIZES = {
    "DAT-T": _dat(96, 6, 3, 3, 0.2),
    "DAT-S": _dat(96, 18, 3, 3, 0.3),
    "DAT-B": _dat(128, 18, 4, 4, 0.5),
    "DAT-T++": _dat_plus_plus(64, 2, [1, 2, 4, 8], 0.2),
    "DAT-S++": _dat_plus_plus(96, 3, [1, 2, 3, 6], 0.4),
    "DAT-B++": _dat_plus_plus(128, 4, [2, 4, 8, 16], 0.7),
    # Of the maps of the quick starts' thin ResNet; nobody has published one so small.
    "DAT-XS": _dat(32, 2, 1, 1, 0.0),
}
