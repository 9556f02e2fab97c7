"""From a trained model to a file that is checked, and the report beside it."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import __version__
from ..checkpoint.atomic import written_atomically
from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..engine.run_folder import require_folder
from ..engine.trained_model import TrainedModel
from ..errors import InputError
from ..predictor import Predictor
from ..toolbox import CfgNode, describe_toolbox
from . import check, tensorrt, torchscript
from .description import Description, class_table
from .formats import FORMATS
from .graph import DetectorGraph
from .program import export_program, smallest_side
from .runner import load_predictor, predictor_of

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "float16", "bfloat16")
#: px: more would be no detector's image.
MAX_SIDE = 10_000
INPUTS = {
    "images": "(N, 3, H, W) uint8, RGB, resized and then padded on the right and at the bottom",
    "sizes": "(N, 2) int64, (height, width) of each image without its padding, px",
}
OUTPUTS = {
    "boxes": "(N, D, 4) float32, (x1, y1, x2, y2) in px of images, clipped to their sizes",
    "scores": "(N, D) float32, the best first",
    "labels": "(N, D) int64, rows of the class table",
}


def export_model(
    cfg: CfgNode,
    trained: TrainedModel,
    path: str,
    samples: check.Samples,
    *,
    format: str,
    size: Sequence[int] | None = None,
    precision: str = "float32",
) -> dict[str, Any]:
    """
    Writes `path`, compares it with the model, and writes the report, `path` with ".json".

    A file that is not what the model is does not stay.

    Args:
        cfg: of the model.
        trained: the model, on the CPU, which is left as it is.
        path: ends as files of the format do.
        samples: images to compare on, one at least.
        format: of :data:`.formats.FORMATS`.
        size: (height, width) of all images, into which the program's are fitted; None for any.
        precision: of weights and arithmetic.

    Returns:
        The report.

    Raises:
        InputError: for what cannot be exported so, and a file that differs from the model.
    """
    form = FORMATS[format]
    _check_arguments(path, form.SUFFIX, size, samples)
    graph = DetectorGraph(trained.model, cfg.INPUT.FORMAT)
    form.refuse(graph, size, precision)
    exported = DetectorGraph(trained.model, cfg.INPUT.FORMAT).to(getattr(torch, precision))
    if form is torchscript:
        program, smallest = torchscript.trace(exported, size), 1
    else:
        program = export_program(exported, size)
        smallest = smallest_side(program)
    description = _describe(cfg, trained, format, size, precision, smallest)
    with _kept_if_sound(path, form.SUFFIX) as unchecked:
        form.write(program, unchecked, description.text())
        report: dict[str, Any] = {
            "file": os.path.basename(path),
            "bytes": os.path.getsize(unchecked),
            "sha256": _checksum(unchecked),
            **vars(description),
        }
        if form is tensorrt:
            report["check"] = {"shapes_of_attention": tensorrt.checked_shapes(unchecked)}
        else:
            reference = predictor_of(graph, description) if size else None
            report |= _checked(unchecked, cfg, trained, reference, samples)
            _refuse_differences(report, precision)
    with written_atomically(f"{path}.json") as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False).encode())
    return report


def _check_arguments(
    path: str, suffix: str, size: Sequence[int] | None, samples: check.Samples
) -> None:
    if not path.endswith(suffix):
        raise InputError(f"{path}: a file of this format ends in {suffix}; call it so")
    if os.path.exists(path):
        raise InputError(f"{path} is there already, and is not overwritten: give another name")
    require_folder(os.path.dirname(os.path.abspath(path)))
    if size and not all(1 < side <= MAX_SIDE for side in size):
        raise InputError(f"size must be a height and a width of 2 to {MAX_SIDE} px, got {size}")
    if not samples.paths:
        raise InputError("there is no image to compare the file with the model on: name some")


def _describe(
    cfg: CfgNode,
    trained: TrainedModel,
    format: str,
    size: Sequence[int] | None,
    precision: str,
    smallest: int,
) -> Description:
    model, inputs = trained.model, cfg.INPUT
    preprocessing = {
        "resize": "PIL's bilinear filter, before the program",
        "short_side": None if size else inputs.MIN_SIZE_TEST,
        "long_side": None if size else inputs.MAX_SIZE_TEST,
        "rule": "fit" if size else inputs.RESIZE_RULE,
        "channels": f"RGB; {inputs.FORMAT} inside the program",
        "normalise": "(pixel - mean) / std, inside the program",
        "mean": model.pixel_mean.flatten().tolist(),
        "std": model.pixel_std.flatten().tolist(),
    }
    packages = ["torch", "torchvision"]
    if FORMATS[format].SUFFIX == ".onnx":
        packages += ["onnx", "onnxscript", "onnxruntime"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    return Description(
        format=format,
        architecture=cfg.MODEL.META_ARCHITECTURE,
        precision=precision,
        classes=class_table(cfg.MODEL.DETR.NUM_CLASSES, trained.class_names, trained.category_ids),
        size=list(size) if size else None,
        smallest=smallest,
        preprocessing=preprocessing,
        inputs=INPUTS,
        outputs=OUTPUTS,
        versions={
            "detectron2_ddetr": __version__,
            "toolbox": describe_toolbox().split(" (")[0],
            "python": platform.python_version(),
            **versions,
        },
    )


def _checked(
    path: str,
    cfg: CfgNode,
    trained: TrainedModel,
    reference: Predictor | None,
    samples: check.Samples,
) -> dict[str, Any]:
    """
    "check" and, where there is ground truth, "ap" of a report.

    Args:
        reference: computes in float32 what the file does; None for the model as it is evaluated.
    """
    mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
    original = Predictor(model=trained.model, mapper=mapper, class_names=trained.class_names)
    exported = load_predictor(path)
    found, (before, after) = check.compare(reference or original, exported, samples)
    transformer = trained.model.head.transformer
    ranked = transformer.two_stage and transformer.mixed_selection
    report: dict[str, Any] = {"check": check.summary(found, len(samples.paths), ranked)}
    if samples.truth is not None:
        if reference:
            before = [d for d, in check.detections((original,), samples)]
        limit = cfg.TEST.DETECTIONS_PER_IMAGE
        figures = [check.average_precision(samples, each, limit) for each in (before, after)]
        report["ap"] = dict(zip(("before", "after"), figures))
    return report


def _refuse_differences(report: dict[str, Any], precision: str) -> None:
    """
    Raises:
        InputError: if a file in float32 differs from the model by more than its rule allows.
    """
    found = report["check"]
    needed = 0.5 if found["ranked"] else 1.0
    if precision == "float32" and found["share_within_tolerance"] < needed:
        raise InputError(
            f"{report['file']} was not kept, since its detections are not those of the model: "
            f"{found['share_within_tolerance']:.1%} are within {found['tolerance']:g}, the rule "
            f"is {found['rule']}; the largest differences are "
            f"{found['largest_box_difference_px']:.3g} px and "
            f"{found['largest_score_difference']:.3g} of a score. Take another --format, and "
            "please report it"
        )


@contextlib.contextmanager
def _kept_if_sound(path: str, suffix: str) -> Iterator[str]:
    """A name to write to; the file becomes `path` unless an error arises."""
    unchecked = f"{path.removesuffix(suffix)}.unchecked{suffix}"
    try:
        yield unchecked
        os.replace(unchecked, path)
    finally:
        if os.path.exists(unchecked):
            os.remove(unchecked)


def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
