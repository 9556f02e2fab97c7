"""An exported file beside its model: the same detections, and the same AP."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..data.image_files import read_image
from ..data.time_left import TimeLeft
from ..engine.box_metrics import box_metrics, indexed, run_coco
from ..engine.detections_file import columns_of, results_of
from ..engine.ground_truth import GroundTruth
from ..predictor import Predictor
from ..toolbox import Instances

#: Of scores, and of boxes as a fraction of their image, in float32.
TOLERANCE = 1e-3
#: So many detections of an image are compared, the best.
COMPARED = 100
#: Scores that differ by no more may stand in either order.
TIE = 1e-5


class Samples(NamedTuple):
    """Images to compare on, with their ground truth where there is one."""

    paths: list[str]
    truth: GroundTruth | None = None
    #: Image ids by path, and category ids by class number, of `truth`.
    image_ids: Mapping[str, int | str] = {}
    category_ids: Mapping[int, int | str] = {}


class Differences(NamedTuple):
    """Of the detections of an image, each beside the one that it is taken for."""

    boxes_px: np.ndarray
    #: As a fraction of the longer side of the image.
    boxes: np.ndarray
    scores: np.ndarray

    def within(self, tolerance: float) -> np.ndarray:
        """Which of them differ by no more."""
        return (self.boxes <= tolerance) & (self.scores <= tolerance)


def differences(reference: Instances, found: Instances) -> Differences:
    """
    Of the best detections of `reference` and those of `found` that are most like them.

    Not by rank, which changes where scores are nearly equal. A detection that has no counterpart of
    its class differs by its whole score; but not the last ones, where `found` ends as well.
    """
    reference = reference[:COMPARED]
    side = max(reference.image_size)
    boxes = [x.pred_boxes.tensor.numpy() for x in (reference, found)]
    scores = [x.scores.numpy().astype(np.float64) for x in (reference, found)]
    labels = [x.pred_classes.numpy() for x in (reference, found)]
    by_box = np.abs(boxes[0][:, None] - boxes[1]).max(-1, initial=0)
    by_score = np.abs(scores[0][:, None] - scores[1])
    other_class = labels[0][:, None] != labels[1]
    rows, columns = linear_sum_assignment(by_box / side + by_score + 10 * other_class)
    box, score = np.full(len(reference), np.inf), scores[0].copy()
    taken = ~other_class[rows, columns]
    rows, columns = rows[taken], columns[taken]
    box[rows], score[rows] = by_box[rows, columns], by_score[rows, columns]
    # Of nearly equal scores at the end of both, either may be the last.
    ends = min(scores[1], default=0.0) + TIE
    compared = ~((scores[0] <= ends) & ((box > TOLERANCE * side) | (score > TOLERANCE)))
    box, score = box[compared], score[compared]
    return Differences(box, box / side, score)


def detections(
    predictors: Sequence[Predictor], samples: Samples
) -> Iterator[tuple[Instances, ...]]:
    """Those of each predictor, image by image."""
    progress = TimeLeft("comparing", len(samples.paths))
    for path in samples.paths:
        pixels = read_image(path)
        yield tuple(predictor.detect([pixels], [path])[0] for predictor in predictors)
        progress.add(1)


def compare(
    reference: Predictor, exported: Predictor, samples: Samples
) -> tuple[Differences, tuple[list[Instances], list[Instances]]]:
    """
    Both over all images.

    Returns:
        The differences of all detections, and the detections of both, image by image.
    """
    pairs = list(detections((reference, exported), samples))
    rows = [differences(*pair) for pair in pairs]
    before, after = (list(of_all) for of_all in zip(*pairs))
    return Differences(*map(np.concatenate, zip(*rows))), (before, after)


def average_precision(
    samples: Samples, detections: Iterable[Instances], limit: int
) -> dict[str, float] | None:
    """COCO's figures of these images; None where there is no ground truth."""
    truth = samples.truth
    if truth is None or not truth.coco.anns:
        return None
    ids = [samples.image_ids[path] for path in samples.paths]
    kept = set(ids)
    content = truth.coco.dataset
    coco = indexed(
        {
            **content,
            "images": [image for image in content["images"] if image["id"] in kept],
            "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
        }
    )
    results = [
        result
        for image_id, instances in zip(ids, detections)
        for result in results_of(image_id, columns_of(instances), samples.category_ids)
    ]
    return box_metrics(run_coco(coco, results, limit), truth.classes).results()


def summary(found: Differences, images: int, ranked: bool) -> dict[str, Any]:
    """
    Of a report, numbers that json has.

    Args:
        ranked: whether the content of a query goes by the rank of its proposal.
    """
    finite = np.isfinite(found.boxes)
    rule = (
        f"half of the detections within {TOLERANCE:g}: the content of a query goes by the rank of "
        "its proposal, which rounding changes where two score alike"
        if ranked
        else f"all detections within {TOLERANCE:g}"
    )
    return {
        "images": images,
        "detections": len(found.boxes),
        "without_counterpart": int((~finite).sum()),
        "largest_box_difference_px": _largest(found.boxes_px[finite]),
        "largest_box_difference_of_image": _largest(found.boxes[finite]),
        "largest_score_difference": _largest(found.scores),
        "median_box_difference_px": float(np.median(found.boxes_px)) if finite.any() else 0.0,
        "share_within_tolerance": float(np.mean(found.within(TOLERANCE))) if len(finite) else 1.0,
        "tolerance": TOLERANCE,
        "ranked": ranked,
        "rule": rule,
    }


def _largest(values: Sequence[float]) -> float:
    return float(np.max(values, initial=0.0))
