"""The command `ddetr predict`: its options, and the way from inputs to outputs."""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress

from ..data.findings import counted
from ..data.time_left import TimeLeft
from ..engine.ids import Ids, ids_in_json
from ..engine.run import take_inputs
from ..errors import InputError
from ..predictor import Predictor, batches
from ..toolbox import Instances
from ..visualization.detections import draw_instances
from ..visualization.text import readable_names
from .frames import Frame, Skipped, Video, read_pictures
from .outputs import results_file, video_file, write_detections
from .plan import Plan, plan_of

logger = logging.getLogger(__name__)

EXAMPLE = """example: ddetr predict output/first photo.jpg holidays/ clip.mp4 --class dog

Inputs are images, folders, patterns and videos. KEY VALUE pairs change the config and come last.
"""
#: The score from which on detections are drawn.
DRAWN_FROM = 0.4

Sink = Callable[[Frame, Instances], None]


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """All but the run, the inputs and the KEY VALUE pairs, which are words without dashes."""
    take_inputs(parser, "ddetr predict RUN INPUT ... [options] [KEY VALUE ...]", EXAMPLE)
    add = parser.add_argument
    add("--webcam", type=int, metavar="N", help="look through webcam N, until Ctrl-C")
    add("--output", metavar="FOLDER", help="of pictures and videos; default: predictions")
    add(
        "--json", metavar="FILE", help="write all detections to it, and pictures with --output only"
    )
    add("--ids-of", metavar="FILE", help="COCO json that has the ids for --json")
    add(
        "--score-threshold",
        type=float,
        metavar="S",
        help="default: 0.4 of what is drawn, 0 of --json",
    )
    add("--top-k", type=int, metavar="K", help="at most so many detections of an image")
    add("--class", dest="classes", action="append", metavar="NAME", help="only it; again for more")
    add("--tiles", type=int, metavar="SIDE", help="look at large images in tiles of so many px too")
    add("--tile-overlap", type=float, default=0.25, metavar="SHARE", help="default: %(default)s")
    add("--batch-size", type=int, default=1, metavar="N", help="images at a time")


def predict(make_predictor: Callable[..., Predictor], args: argparse.Namespace) -> None:
    """
    Args:
        make_predictor: takes the arguments of :class:`Predictor` from `array_format` on.
        args: of :func:`add_predict_arguments`, and `inputs`, a list.

    Raises:
        MissingFileError, InputError: before anything is computed if it cannot be; at the end if
            something was skipped.
    """
    plan = plan_of(args)
    predictor = make_predictor(
        batch_size=args.batch_size,
        max_detections=args.top_k,
        classes=args.classes,
        tiles=args.tiles,
        tile_overlap=args.tile_overlap,
    )
    run = _Run(predictor, args.score_threshold, plan)
    with ExitStack() as stack:
        if args.json:
            ids = _ids(args.ids_of, plan, predictor)
            run.add_results(stack.enter_context(results_file(args.json, ids)))
        run.pictures()
        for source in plan.videos:
            run.video(source)
    run.say_what_was_done(args.json)


def _ids(truth: str | None, plan: Plan, predictor: Predictor) -> Ids:
    """Those of a json, or of the data that the model was trained on, or numbers and paths."""
    if truth:
        return ids_in_json(truth, plan.pictures, predictor.class_names)
    return Ids(dict(enumerate(predictor.category_ids or range(predictor.model.num_classes))), {})


class _Run:
    """Takes pictures to the model, and detections to where they are to go."""

    def __init__(self, predictor: Predictor, score_threshold: float | None, plan: Plan):
        self._predictor = predictor
        self._plan = plan
        self._skipped = Skipped()
        self._threshold = DRAWN_FROM if score_threshold is None else score_threshold
        self._json_threshold = score_threshold or 0.0
        self._names = readable_names(tuple(predictor.class_names or ()))
        self._add_results: Sink | None = None
        self._images = self._detections = 0
        self._best = 0.0
        self._start = time.monotonic()

    def add_results(self, sink: Sink) -> None:
        """From now on all detections go there too."""
        self._add_results = sink

    def pictures(self) -> None:
        """All images of the plan; a picture of each if there is a folder for them."""
        paths, folder = self._plan.pictures, self._plan.folder
        frames = read_pictures(paths, self._skipped)
        for frame, found in self._each(frames, TimeLeft("predicting", len(paths))):
            if folder:
                path = os.path.join(folder, self._plan.names[frame.name])
                write_detections(frame, found, self._names, self._threshold, path)

    def video(self, source: str | int) -> None:
        """A video of it, if there is a folder for it."""
        folder = self._plan.folder
        try:
            video = Video(source)
        except InputError as error:
            self._skipped.add(error)
            return
        frames = video.frames(self._skipped)
        with ExitStack() as stack:
            if folder:
                path = os.path.join(folder, f"{self._plan.names[video.name]}.mp4")
                write = stack.enter_context(video_file(path, video.rate))
            if video.is_webcam:
                logger.info("%s: Ctrl-C ends it", video.name)
                stack.enter_context(suppress(KeyboardInterrupt))
            progress = TimeLeft(video.name, video.num_frames, "pictures")
            for frame, found in self._each(frames, progress):
                if folder:
                    write(draw_instances(frame.pixels, found, self._names))

    def _each(
        self, frames: Iterable[Frame], progress: TimeLeft
    ) -> Iterator[tuple[Frame, Instances]]:
        """Each with the detections in it that are to be drawn."""
        for some in batches(frames, self._predictor.batch_size):
            pixels, names = [frame.pixels for frame in some], [frame.name for frame in some]
            for frame, instances in zip(some, self._predictor.detect(pixels, names)):
                if self._add_results:
                    self._add_results(frame, instances[instances.scores >= self._json_threshold])
                drawn = instances[instances.scores >= self._threshold]
                self._images += 1
                self._detections += len(drawn)
                self._best = max([self._best, *instances.scores.tolist()])
                yield frame, drawn
            progress.add(len(some))

    def say_what_was_done(self, json_file: str | None) -> None:
        """
        Raises:
            InputError: if something was skipped.
        """
        seconds = time.monotonic() - self._start
        if self._images:
            written = " and ".join(filter(None, (self._plan.folder, json_file)))
            images, found = counted(self._images, "image"), counted(self._detections, "detection")
            logger.info(
                f"{images}, {found} with a score >= {self._threshold:g}, "
                f"{seconds / self._images:.2g} s an image; wrote {written}"
            )
            if not self._detections:
                logger.warning(
                    f"No detection reaches the score of {self._threshold:g}; the best is "
                    f"{self._best:.2g}. Give a lower --score-threshold to see some"
                )
        if self._skipped.count:
            others = counted(self._images, "other image")
            done = f"{others} done" if self._images else "nothing was done"
            raise InputError(f"{self._skipped.count} skipped, see above; {done}")
