"""
Box AP of detections in a file, as training reports it:

    python -m detectron2_ddetr.evaluate predictions.json truth.json

The first is a list in COCO's format of results, such as the coco_instances_results.json of a run,
the second a COCO json with annotations; no image is looked for.
"""

import argparse
import sys
from collections.abc import Sequence

from .engine.box_metrics import BoxMetrics, box_metrics, run_coco, summary_line
from .engine.detections_file import read_detections
from .engine.ground_truth import truth_of_file
from .errors import InputError, explained


def evaluate(predictions: str, truth: str, max_detections: int = 100) -> BoxMetrics:
    """
    Args:
        predictions, truth: the two files.
        max_detections: only so many detections of a class and image count, the best.

    Raises:
        MissingFileError, InputError: name the file and what is wrong in it.
    """
    if max_detections < 1:
        raise InputError(f"--max-detections is {max_detections}, but must be at least 1")
    boxes = truth_of_file(truth)
    if not boxes.coco.anns:
        raise InputError(f"{truth}: has no annotations, with which detections could be compared")
    results = read_detections(predictions, boxes)
    return box_metrics(run_coco(boxes.coco, results, max_detections), boxes.classes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures of all classes in a line, and a table by class."""
    parser = argparse.ArgumentParser(
        prog="python -m detectron2_ddetr.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", help="json of detections")
    parser.add_argument("truth", help="COCO json with annotations")
    parser.add_argument(
        "--max-detections", type=int, default=100, metavar="N", help="per class and image"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    args = parser.parse_args(arguments)
    with explained(args.traceback):
        metrics = evaluate(args.predictions, args.truth, args.max_detections)
    sys.stdout.write(f"{summary_line(metrics.results())}\n{metrics.table()}\n")


if __name__ == "__main__":
    main()
