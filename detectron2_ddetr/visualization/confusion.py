"""The picture of which classes are taken for which."""

import logging
import os
from collections.abc import Sequence

import numpy as np

from ..checkpoint.files import last_checkpoint
from ..config import load_config
from ..engine.box_metrics import box_metrics, run_coco
from ..engine.confusion import confusion_matrix
from ..engine.detections_file import FILE_NAME, read_detections
from ..engine.evaluator import detections_folder
from ..engine.ground_truth import GroundTruth
from ..toolbox import CfgNode
from .drawing import MARGIN, text_lines, write_picture
from .hits import IOU_THRESHOLD
from .text import line_height, readable, readable_names, shortened, text_width, write

logger = logging.getLogger(__name__)

#: What the last row and the last column are.
NOTHING, MISSED = "(nothing there)", "(missed)"
#: px; a matrix of few classes has large cells, one of many cells that hold three digits.
MATRIX_SIDE, MAX_CELL, MIN_CELL = 1100, 110, 28
MAX_LABEL = 240
GAP = 5  # px between a name and the cells
#: More than these would make a picture that nothing can show.
MAX_CLASSES = 150
#: From more rows than this on, the eye needs help to follow them.
MANY = 20
#: So many confusions are written out.
MOST_FREQUENT = 5
#: Of a share of 1: hits are blue, all else is orange, of Okabe and Ito.
_HIT, _WRONG = (0, 114, 178), (213, 94, 0)
_INK, _PALE, _LINE, _EDGE = (40, 40, 40), (255, 255, 255), (225, 225, 225), (90, 90, 90)


def plot_confusion(detections_json: str, dataset_name: str, max_detections: int, path: str) -> None:
    """
    Draws the detections of a file that reach the score with the best F1 over all classes.

    Args:
        detections_json: in COCO's format of results.
        dataset_name: that they were made on, registered.
        max_detections: per class and image.
        path: of the picture.

    Raises:
        InputError: see :func:`.read_detections`; and if the picture cannot be written.
    """
    truth = GroundTruth(dataset_name)
    if not truth.coco.anns:
        logger.warning(f"{dataset_name} has no annotations, so no confusions are drawn")
        return
    results = read_detections(detections_json, truth)
    evaluation = run_coco(truth.coco, results, max_detections)
    best = box_metrics(evaluation, truth.classes).everything.best
    if best is None:
        logger.warning(f"{detections_json}: there is no hit, so no confusions are drawn")
        return
    classes = {name: i for name, i in truth.classes.items() if i is not None}
    matrix = confusion_matrix(evaluation, list(classes.values()), best.score)
    title = (
        f"{readable(dataset_name, 'the test set')}: detections with a score >= {best.score:.3f}, "
        f"where F1 is best ({best.f1:.3f}; precision {best.precision:.3f}, recall "
        f"{best.recall:.3f}); IoU >= {IOU_THRESHOLD:g}"
    )
    picture = draw_confusion(matrix, list(classes), title)
    write_picture(picture, path)
    logger.info(f"Wrote {path}")


def confusion_of_run(cfg: CfgNode, path: str) -> None:
    """
    :func:`plot_confusion` of the last evaluation into OUTPUT_DIR, on its first test set.

    Where there is none, or `cfg` is for other weights or other data, the log says why nothing is
    drawn.
    """
    name = cfg.DATASETS.TEST[0]
    detections = os.path.join(detections_folder(cfg, name), FILE_NAME)
    why = _why_not(cfg, detections)
    if why:
        logger.warning(f"{why}, so no confusions are drawn")
    else:
        plot_confusion(detections, name, cfg.TEST.DETECTIONS_PER_IMAGE, path)


def _why_not(cfg: CfgNode, detections_json: str) -> str:
    """Why the detections in OUTPUT_DIR are not those that `cfg` means; "" if they are."""
    if not os.path.isfile(detections_json):
        return f"There are no detections in {detections_json}"
    found_with = load_config(os.path.join(cfg.OUTPUT_DIR, "config.yaml"))
    # A folder without a checkpoint is of `ddetr eval`, whose config names the weights.
    weights = last_checkpoint(cfg.OUTPUT_DIR) or found_with.MODEL.WEIGHTS
    if os.path.realpath(weights) != os.path.realpath(cfg.MODEL.WEIGHTS):
        return f"{detections_json} is not of MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}"
    name = cfg.DATASETS.TEST[0]
    before, now = (
        [list(d) for d in c.DATASETS.COCO_JSON if d[0] == name] for c in (found_with, cfg)
    )
    if found_with.DATASETS.TEST != cfg.DATASETS.TEST or before != now:
        return f"{detections_json} is not of the data set {name} that is given now"
    return ""


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], title: str) -> np.ndarray:
    """
    Args:
        matrix: (K + 1, K + 1), see :func:`.confusion_matrix`.
        class_names: (K,).
        title: stands above it.

    Returns:
        (H, W, 3) uint8 RGB. Each cell has its number, and is the darker the larger its share is of
        its row; in the last row, where no ground truth is, of the detections of its column. Of
        very many classes, those with the most boxes.
    """
    names = readable_names(tuple(class_names))
    notes = _notes(matrix, names)
    shares = _shares(matrix)
    if len(names) > MAX_CLASSES:
        kept = np.sort(np.argsort(-matrix[:-1].sum(1), kind="stable")[:MAX_CLASSES])
        notes.append(f"Of {len(names)} classes, the {MAX_CLASSES} with the most boxes are shown.")
        names = [names[i] for i in kept]
        kept = np.append(kept, len(matrix) - 1)
        matrix, shares = matrix[np.ix_(kept, kept)], shares[np.ix_(kept, kept)]
    cell = min(MAX_CELL, max(MIN_CELL, MATRIX_SIDE // len(matrix)))
    font = min(18, max(11, cell // 3))
    rows = [_label(name, font) for name in (*names, NOTHING)]
    columns = [_label(name, font) for name in (*names, MISSED)]
    upright = all(label.shape[1] <= cell - 8 for label in columns)
    columns = columns if upright else [np.rot90(label) for label in columns]
    grid = _grid(matrix, shares, cell)
    beside = max(label.shape[1] for label in rows) + MARGIN
    above = max(label.shape[0] for label in columns) + MARGIN // 2
    many = len(matrix) > MANY  # then the names stand at the other sides too
    left, top = beside + MARGIN, above + line_height(font)
    side = len(grid)
    shape = (
        top + side + (above if many else MARGIN),
        left + side + (beside if many else MARGIN),
        3,
    )
    canvas = np.full(shape, 255, dtype=np.uint8)
    canvas[top : top + side, left : left + side] = grid
    write(canvas, "detections of", left, 0, font, _EDGE)
    write(canvas, "boxes of", MARGIN, top - line_height(font), font, _EDGE)
    for i, (row, column) in enumerate(zip(rows, columns)):
        y = top + i * cell + (cell - row.shape[0]) // 2
        x = left + i * cell + (cell - column.shape[1]) // 2
        _paste(canvas, row, left - GAP - row.shape[1], y)
        _paste(canvas, column, x, top - GAP - column.shape[0])
        if many:
            _paste(canvas, row, left + side + GAP, y)
            _paste(canvas, column, x, top + side + GAP)
    width = max(canvas.shape[1], 480)
    canvas = np.pad(canvas, ((0, 0), (0, width - canvas.shape[1]), (0, 0)), constant_values=255)
    size = max(14, font)
    texts = [text_lines(text, width, size) for text in (title, *notes)]
    return np.concatenate([texts[0], canvas, *texts[1:]])


def _notes(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """What the colours mean, and the most frequent confusions."""
    notes = [
        "Blue are the hits, as a share of the boxes of their row. Orange are the boxes that were "
        "taken for another class or missed, as a share of their row, and in the last row the "
        "detections where nothing is, as a share of their column."
    ]
    wrong = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_FREQUENT]
    pairs = [np.unravel_index(i, wrong.shape) for i in order if wrong.flat[i] > 0]
    if pairs:
        said = [f"{names[row]} taken for {names[column]} ({wrong[row, column]})"
                for row, column in pairs]  # fmt: skip
        notes.append("Most frequent: " + ", ".join(said) + ".")
    return notes


def _shares(matrix: np.ndarray) -> np.ndarray:
    """(K + 1, K + 1) of the rows, but in the last row of the columns."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    shares[-1] = matrix[-1] / np.maximum(matrix.sum(0), 1)
    return shares


def _grid(matrix: np.ndarray, shares: np.ndarray, cell: int) -> np.ndarray:
    """(S, S, 3) uint8: the cells with their numbers."""
    number = len(matrix)
    side = number * cell + 1
    grid = np.full((side, side, 3), 255, dtype=np.uint8)
    for row, column in np.argwhere(matrix):
        full = _HIT if row == column else _WRONG
        # Not in proportion: a share of a tenth is to be seen.
        depth = shares[row, column] ** 0.6
        color = (1 - depth) * np.array(_PALE) + depth * np.array(full)
        patch = grid[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        patch[:] = np.round(color)
        ink = _PALE if np.dot(color, (0.299, 0.587, 0.114)) < 140 else _INK
        _write_cell(patch, int(matrix[row, column]), float(shares[row, column]), ink)
    # Every tenth is stronger; so are those around the classes.
    strong = {0, number - 1, number, *(range(0, number, 10) if number > MANY else ())}
    for i in sorted(range(number + 1), key=lambda i: i in strong):
        grid[i * cell, :] = grid[:, i * cell] = _EDGE if i in strong else _LINE
    return grid


def _write_cell(patch: np.ndarray, count: int, share: float, ink: Sequence[int]) -> None:
    """The number into the middle; its share below where there is room."""
    cell = patch.shape[0]
    lines = [_short(count)] + ([f"{100 * share:.0f} %"] if cell >= 60 else [])
    size = min(20, max(9, cell // 3))
    while size > 7 and max(text_width(line, size) for line in lines) > cell - 2:
        size -= 1
    top = (cell - len(lines) * line_height(size)) // 2
    for i, line in enumerate(lines):
        left = (cell - text_width(line, size)) // 2
        write(patch, line, max(left, 0), top + i * line_height(size), size, ink)


def _short(count: int) -> str:
    """Thousands as 12k where there are ten of them, so that it fits into a small cell."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _label(name: str, font: int) -> np.ndarray:
    """(H, W, 3) uint8: a name on white, cut if it is long."""
    name = shortened(name, font, MAX_LABEL)
    label = np.full((line_height(font), text_width(name, font), 3), 255, dtype=np.uint8)
    write(label, name, 0, 0, font, _INK)
    return label


def _paste(canvas: np.ndarray, label: np.ndarray, left: int, top: int) -> None:
    canvas[top : top + label.shape[0], left : left + label.shape[1]] = label
