"""The command `ddetr inspect`: its options, and which pictures it draws."""

import argparse
import glob
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...data.dataset_mapper import DeformableDETRDatasetMapper
from ...data.image_files import read_image
from ...data.yolo_folder import IMAGE_ENDINGS
from ...engine.run import take_inputs
from ...engine.trained_model import load_trained_model, require_weights
from ...errors import InputError, MissingFileError
from ...modeling import capture
from ...toolbox import CfgNode
from ..drawing import write_picture
from ..text import readable, readable_names
from .backbones import backbone_pictures
from .choice import Choice, choose
from .dense_attention import attention_of_objects, decoder_maps, encoder_maps
from .gradient_maps import gradient_maps, gradient_norms
from .layer_ap import ap_of_layers, layer_ap
from .matching import match, matching
from .matching_by_checkpoint import Checkpoint, matching_by_checkpoint
from .noised_boxes import noised_boxes
from .page import write_page
from .position_encodings import position_encodings
from .proposals import proposals
from .query_groups import groups_of, query_groups
from .query_losses import losses_of_queries, query_losses
from .query_map import query_map
from .receptive_field import receptive_field
from .sampling_points import decoder_points, encoder_points
from .trajectory import trajectory
from .truth import Truth
from .view import View

logger = logging.getLogger(__name__)

EXAMPLE = """example: ddetr inspect output/first photo.jpg --pixel 305 183 --truth val.json

Each image gets a folder. KEY VALUE pairs change the config and come last.
"""
#: Queries of the map, where a model has more.
MAX_QUERIES = 20


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """All but the run, the images and the KEY VALUE pairs, which are words without dashes."""
    take_inputs(parser, "ddetr inspect RUN IMAGE ... [options] [KEY VALUE ...]", EXAMPLE)
    add = parser.add_argument
    add("--output", metavar="FOLDER", help="of the pictures; default: inspect in RUN")
    add(
        "--pixel",
        type=float,
        nargs=2,
        metavar=("X", "Y"),
        help="seen by the encoder; default: the best detection",
    )
    add("--level", type=int, default=0, metavar="L", help="of its cell; default: 0, the finest")
    add("--query", type=int, metavar="Q", help="default: that of the best detection")
    add("--layer", type=int, action="append", metavar="N", help="default: last; again for more")
    add(
        "--score-threshold",
        type=float,
        default=0.4,
        metavar="S",
        help="of trajectories; default: 0.4",
    )
    add("--truth", metavar="FILE", help="COCO json: draws the matching and the losses too")
    add(
        "--earlier",
        action="append",
        default=[],
        metavar="FILE",
        help="checkpoint whose matching comes before, with --truth; again for more",
    )
    add("--over", metavar="FOLDER", help="where queries put boxes in all its images, AP by layer")


def inspect(cfg: CfgNode, images: Sequence[str], args: argparse.Namespace) -> None:
    """
    Writes the pictures of each image into a folder of its name, and the map of queries.

    Args:
        cfg: of a trained model, with MODEL.WEIGHTS.
        images: their paths.
        args: of :func:`add_inspect_arguments`.

    Raises:
        MissingFileError, InputError: before anything is computed if it can be seen then.
    """
    if not images and not args.over:
        raise InputError("no image is given: name one or more, or a folder of them with --over")
    if not 0 <= args.score_threshold <= 1:
        raise InputError(f"--score-threshold is {args.score_threshold:g}: scores are from 0 to 1")
    if args.earlier and not (images and args.truth):
        raise InputError(
            "--earlier compares the matching of checkpoints in an image: name one, and the --truth"
        )
    folders = _folders_of(images, args.output)
    over = _images_in(args.over) if args.over else []
    require_weights(cfg)
    names = tuple(cfg.DATASETS.CLASS_NAMES)
    truth = Truth(args.truth, names, cfg.MODEL.DETR.NUM_CLASSES) if args.truth else None
    model, class_names, _ = load_trained_model(cfg)
    earlier = {path: _model_of(cfg, path) for path in args.earlier}
    names = names or tuple(class_names or ())
    mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
    for path, folder in folders.items():
        image = read_image(path)
        sample = mapper({"file_name": path})
        view = _view(model, image, sample, names)
        choice = choose(
            view,
            pixel=args.pixel,
            level=args.level,
            query=args.query,
            layers=args.layer,
            score_threshold=args.score_threshold,
        )
        target = truth.target_of(path, image.shape[1], image.shape[0]) if truth else None
        pixels = (sample["image"].to(model.pixel_mean) - model.pixel_mean) / model.pixel_std
        chosen = args.pixel is not None
        pictures = [
            _attention(view, choice),
            _model(view, choice, model, sample),
            backbone_pictures(view, choice, model.backbone, pixels, chosen=chosen),
        ]
        if target is not None:
            pictures.append(_losses(view, model, target, path))
            views = [(p, m, _view(m, image, sample, names)) for p, m in earlier.items()]
            views.append((cfg.MODEL.WEIGHTS, model, view))
            pictures.append(_by_checkpoint(views, target))
        drawn = [_write(p, folder, name) for name, p in itertools.chain(*pictures)]
        if choice.encoder_layers and not view.captured.is_dense:
            title = readable(os.path.basename(path), "the image")
            write_page(view, choice.encoder_layers, title, os.path.join(folder, "encoder.html"))
            drawn.append("encoder.html")
        logger.info("Wrote into %s: %s", folder, ", ".join(drawn))
    if over:
        picture = _query_map(model, (mapper({"file_name": path}) for path in over))
        drawn = [_write(picture, args.output, "query_map")]
        if truth:
            drawn.append(_write(_layer_ap(model, mapper, over, truth), args.output, "layer_ap"))
        logger.info("Wrote into %s: %s", args.output, ", ".join(drawn))


def _model_of(cfg: CfgNode, weights: str) -> nn.Module:
    """The model of a config with other weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    require_weights(cfg)
    return load_trained_model(cfg).model


def _view(model: nn.Module, image: np.ndarray, sample: dict, names: Sequence[str]) -> View:
    with capture(model) as captured, torch.no_grad():
        model([sample])
    return View(image, captured, 0, readable_names(names))


def _attention(view: View, choice: Choice) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pictures of what was recorded of the attention."""
    if view.captured.is_dense:
        yield from _dense_attention(view, choice)
    else:
        yield from _sampled_attention(view, choice)
    yield "trajectory", trajectory(view, choice.detected)
    if view.captured.selected is not None:
        yield "proposals", proposals(view)


def _sampled_attention(view: View, choice: Choice) -> Iterator[tuple[str, np.ndarray]]:
    if choice.encoder_layers:
        layers = choice.encoder_layers
        yield "encoder_points", encoder_points(view, choice.pixel, layers, choice.level)
        yield "receptive_field", receptive_field(view, choice.pixel, choice.level)
    if choice.decoder_layers:
        yield "decoder_points", decoder_points(view, choice.query, choice.decoder_layers)


def _dense_attention(view: View, choice: Choice) -> Iterator[tuple[str, np.ndarray]]:
    """Of DETR. The pixels are the one chosen, and the middles of the other detections."""
    if choice.encoder_layers:
        corners = view.boxes(-1)[choice.detected[1:4]]
        size = np.array(view.image.shape[1::-1]) - 1
        others = np.clip((corners[:, :2] + corners[:, 2:]) / 2, 0, size)
        pixels = [choice.pixel, *map(tuple, others.tolist())]
        yield "encoder_attention", encoder_maps(view, pixels, choice.encoder_layers[-1])
    if choice.decoder_layers:
        layer = choice.decoder_layers[-1]
        detected = "queries that detect"
        yield "decoder_attention", decoder_maps(view, choice.detected, layer, detected)
        yield "attention_of_objects", attention_of_objects(view, choice.detected, layer)
        if rest := [d.query for d in reversed(view.detections()) if d.query not in choice.detected]:
            nothing = "queries that detect nothing"
            yield "attention_of_nothing", decoder_maps(view, rest[:4], layer, nothing)


def _model(
    view: View, choice: Choice, model: nn.Module, sample: dict
) -> Iterator[tuple[str, np.ndarray]]:
    """What takes the model itself."""
    encoding = model.head.position_embedding
    yield "position_encodings", position_encodings(encoding, view.shapes[0])
    norms = gradient_norms(model, [sample], choice.query)
    yield "gradients", gradient_maps(view, choice.query, norms)


def _losses(
    view: View, model: nn.Module, target: dict[str, Tensor], path: str
) -> Iterator[tuple[str, np.ndarray]]:
    """What takes the ground truth."""
    if len(target["labels"]) == 0:
        logger.warning("%s has no box in --truth, so there is no matching to draw", path)
        return
    matched = match(view, model.criterion.matcher, target)
    yield "matching", matching(view, matched)
    losses = losses_of_queries(model.criterion, view, matched)
    yield "query_losses", query_losses(view, matched, losses)
    if model.head.denoising is not None:
        yield "noised_boxes", noised_boxes(view, model.head.denoising, target)
    groups = groups_of(model.head, target)
    if len(groups) > 1:
        yield "query_groups", query_groups(groups)


def _by_checkpoint(
    views: Sequence[tuple[str, nn.Module, View]], target: dict[str, Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Of a path, a model and what it makes of the image, for each checkpoint, if there are more."""
    if len(views) > 1 and len(target["labels"]) > 0:
        checkpoints = [
            Checkpoint(os.path.basename(path), view, match(view, model.criterion.matcher, target))
            for path, model, view in views
        ]
        yield "matching_by_checkpoint", matching_by_checkpoint(checkpoints)


def _query_map(model: nn.Module, samples: Iterable[dict]) -> np.ndarray:
    boxes = []
    with torch.no_grad():
        # One at a time, as in evaluation: padding changes the result a little.
        for sample in samples:
            outputs = model.network_outputs(model.preprocess_image([sample]))
            boxes.append(outputs["pred_boxes"][0].float().cpu().numpy())
    # Of a two-stage model, small images have fewer queries.
    count = min(MAX_QUERIES, *(len(b) for b in boxes))
    return query_map(np.stack([b[:count] for b in boxes]), range(count))


def _layer_ap(
    model: nn.Module,
    mapper: DeformableDETRDatasetMapper,
    paths: Sequence[str],
    truth: Truth,
) -> np.ndarray:
    samples, targets = [], []
    for path in paths:
        height, width = read_image(path).shape[:2]
        targets.append(truth.target_of(path, width, height))
        samples.append({"file_name": path, "height": height, "width": width})
    values = ap_of_layers(model, (mapper(sample) for sample in samples), targets)
    return layer_ap(values, len(paths))


def _folders_of(images: Sequence[str], output: str) -> dict[str, str]:
    """The folder that the pictures of each image go to."""
    folders: dict[str, str] = {}
    for path in images:
        if not os.path.isfile(path):
            raise MissingFileError(f"there is no image {path}: correct its path")
        folder = os.path.join(output, os.path.splitext(os.path.basename(path))[0])
        if folder in folders.values():
            raise InputError(f"{path}: another image has its name too; inspect one after the other")
        folders[path] = folder
    return folders


def _images_in(folder: str) -> list[str]:
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*")))
    found = [path for path in paths if path.lower().endswith(IMAGE_ENDINGS)]
    if not found:
        raise InputError(
            f"--over: {folder} has no image, no file that ends in {', '.join(IMAGE_ENDINGS)}"
        )
    return found


def _write(picture: np.ndarray, folder: str, name: str) -> str:
    write_picture(picture, os.path.join(folder, f"{name}.png"))
    return f"{name}.png"
