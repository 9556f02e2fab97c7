"""What queries of a DAT see: its keys where they lie, beside the keys of other attentions."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ..backbones.dat import DATBackbone
from ..errors import InputError
from ..modeling.deformed_keys import DeformedKeyAttention
from .drawing import MARGIN, text_lines

#: (r, g, b) of the queries (Okabe and Ito), and of what all of them see.
_COLORS = ((213, 94, 0), (0, 114, 178))
_SHARED = (0, 110, 80)
_FAINT = (120, 120, 120)
#: Width of a panel, px.
_PANEL = 360
#: Of Swin, cells.
_WINDOW = 7

Points = np.ndarray


def draw_deformed_keys(
    image: np.ndarray,
    pixels: Tensor,
    backbone: DATBackbone,
    queries: Sequence[tuple[float, float]],
    *,
    stage: int = 2,
    group: int = 0,
) -> np.ndarray:
    """
    Above, which keys queries have: all cells (ViT), those of a window (Swin), nine points of their
    own (a sketch of deformable convolution), the moved keys of the last deformable attention of a
    stage. Below, the grid that these come from, where they have moved, and for each query how much
    it attends to each, as a mean over the heads of the group.

    Args:
        image: (H, W, 3) uint8 RGB.
        pixels: (3, H', W'), what the backbone reads of it: normalised, of any size.
        backbone: in evaluation mode.
        queries: one or two (x, y), px of the image.
        group: of channels and heads, which has places of its own.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        InputError: for queries outside of the image, and a stage or group that there is not.
    """
    height, width = image.shape[:2]
    if not 1 <= len(queries) <= 2 or not all(
        0 <= x < width and 0 <= y < height for x, y in queries
    ):
        raise InputError(f"one or two queries within {width}x{height} px, got {list(queries)}")
    weights, grid, moved = _attended(pixels, backbone, stage, group)
    rows, columns = weights.shape[1:3]
    cell = np.array([width / columns, height / rows])
    near = [np.minimum(np.array(q) // cell, (columns - 1, rows - 1)).astype(int) for q in queries]
    scale = _PANEL / width
    factor = cell * scale
    paper = _paper(image, scale)
    stars = [(n + 0.5) * factor for n in near]
    grid, moved = (grid + 0.5) * factor, (moved + 0.5) * factor

    def panel(title: str, *draw: Callable[[np.ndarray], None]) -> np.ndarray:
        canvas = paper.copy()
        for function in draw:
            function(canvas)
        for star, color in zip(stars, _COLORS):
            _star(canvas, star, color)
        return np.concatenate([text_lines(title, _PANEL, 15, left=0), canvas])

    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    mine = list(zip(near, _COLORS))
    above = [
        panel("ViT: all cells", _dots((cells + 0.5) * factor, _SHARED)),
        panel("Swin: the cells of its window", *(
            _dots((cells[(cells // _WINDOW == n // _WINDOW).all(1)] + 0.5) * factor, color)
            for n, color in mine
        )),
        panel("DCN: nine points of its own (a sketch)", *(
            _dots((_nine(n) + 0.5) * factor, color, 3.5) for n, color in mine
        )),
        panel("DAT: moved keys, the same for all queries", _dots(moved, _SHARED)),
    ]  # fmt: skip
    heads = weights.mean(0)  # (H, W, Hk, Wk)
    below = [
        panel("The regular grid of keys", _dots(grid, _FAINT)),
        panel("Where they have moved", _lines(grid, moved), _dots(moved, _SHARED)),
    ]
    for number, (n, color) in enumerate(mine):
        share = heads[n[1], n[0]].reshape(-1)
        title = f"Keys by the attention of query {number + 1}" if len(mine) > 1 else (
            "Keys by the attention of the query"
        )  # fmt: skip
        below.append(panel(title, _circles(moved, share, color)))
    note = (
        f"Star: a query. Area of a circle: attention, mean over the {len(weights)} heads of group "
        f"{group + 1}. Stage {stage + 1}: {columns}x{rows} cells of {cell[0]:.0f}x{cell[1]:.0f} px."
    )
    picture = np.concatenate([_row(above), _row(below)])
    gap = np.full_like(picture[: MARGIN // 2], 255)
    return np.concatenate([picture, gap, text_lines(note, picture.shape[1], 15)])


@torch.no_grad()
def _attended(
    pixels: Tensor, backbone: DATBackbone, stage: int, group: int
) -> tuple[np.ndarray, Points, Points]:
    """Weights (heads, H, W, Hk, Wk), and the keys before and after, (K, 2), (x, y) in cells."""
    found = [m for m in backbone.stages[stage].attns if isinstance(m, DeformedKeyAttention)]
    if not found or not 0 <= group < found[-1].groups:
        raise InputError(
            f"stage {stage} has no deformable attention with a group {group}: choose others"
        )
    attention, seen = found[-1], []
    handle = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        backbone(pixels[None])
    finally:
        handle.remove()
    x = seen[0]
    weights, deformation = attention.weights(x)
    weights = weights[0].unflatten(0, (attention.groups, -1))[group].unflatten(1, x.shape[1:3])
    last = weights.new_tensor(x.shape[1:3]) - 1
    places = deformation.reference, deformation.positions[0, group]
    grid, moved = (((p + 1) / 2 * last).flip(-1).reshape(-1, 2).cpu().numpy() for p in places)
    return weights.cpu().numpy(), grid, moved


def _paper(image: np.ndarray, scale: float) -> np.ndarray:
    """The image as wide as a panel, and paler."""
    size = _PANEL, max(1, round(image.shape[0] * scale))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else 1)
    return (0.55 * resized + 0.45 * 255).astype(np.uint8)


def _row(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Side by side; as wide as four, with margins around."""
    height = max(len(p) for p in panels)
    row = np.full((height + MARGIN, 4 * (_PANEL + MARGIN) + MARGIN, 3), 255, dtype=np.uint8)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (_PANEL + MARGIN)
        row[MARGIN : MARGIN + len(panel), left : left + _PANEL] = panel[:height]
    return row


def _nine(cell: np.ndarray) -> Points:
    """A 3x3 grid around a cell whose points a fixed wave has moved: no network has learned it."""
    grid = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), -1).reshape(-1, 2)
    angle = 2.4 * np.arange(9) + cell.sum()
    return cell + 1.5 * grid + 0.6 * np.stack([np.cos(angle), np.sin(angle)], -1)


def _at(point: np.ndarray) -> tuple[int, int]:
    """For OpenCV, sixteenths of a pixel."""
    return tuple(int(v) for v in np.round(16 * point))


def _dots(points: Points, color: Sequence[int], radius: float = 2.2) -> Callable:
    def draw(canvas: np.ndarray) -> None:
        for point in points:
            cv2.circle(canvas, _at(point), round(16 * radius), color, -1, cv2.LINE_AA, 4)

    return draw


def _lines(starts: Points, ends: Points) -> Callable:
    def draw(canvas: np.ndarray) -> None:
        for start, end in zip(starts, ends):
            cv2.line(canvas, _at(start), _at(end), _FAINT, 1, cv2.LINE_AA, 4)

    return draw


def _circles(points: Points, shares: np.ndarray, color: Sequence[int]) -> Callable:
    """
    Discs whose area is a share: the largest at most a twelfth of a panel wide, and none that
    overlap where all shares are the same.
    """
    between = _PANEL / math.sqrt(len(points))
    scale = min(_PANEL / 24 / math.sqrt(shares.max()), between / 2 / math.sqrt(shares.mean()))

    def draw(canvas: np.ndarray) -> None:
        over = canvas.copy()
        for index in np.argsort(-shares, kind="stable"):
            radius = scale * math.sqrt(shares[index])
            cv2.circle(over, _at(points[index]), round(16 * radius), color, -1, cv2.LINE_AA, 4)
        canvas[:] = cv2.addWeighted(over, 0.65, canvas, 0.35, 0)

    return draw


def _star(canvas: np.ndarray, center: np.ndarray, color: Sequence[int]) -> None:
    angle = np.arange(10) * math.pi / 5 - math.pi / 2
    for size, ink in ((13.0, (255, 255, 255)), (10.0, color)):
        radius = np.where(np.arange(10) % 2 == 0, size, 0.45 * size)
        corners = center + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        corners = np.round(16 * corners).astype(np.int32)
        cv2.fillPoly(canvas, [corners], ink, cv2.LINE_AA, 4)
