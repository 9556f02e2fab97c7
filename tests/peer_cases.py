"""Readers of what other projects' own code gave (tests/golden/README.md)."""

import json

import numpy as np
import torch

from detectron2_ddetr import Checkpointer
from detectron2_ddetr.toolbox import ImageList, build_model

from . import golden_cases as golden
from .conftest import VARIANTS, small_cfg
from .golden_cases import seeded_parameter

#: Variants with outputs of the project.
CASES = [
    *(("transformers", v) for v in ("single_scale_dc5", "multi_scale", "refine", "two_stage")),
    *(("detrex", v) for v in ("single_scale", "multi_scale", "refine", "two_stage")),
]
SEED = 7


def keys(name):
    """{variant: {key: shape}} of R-50 models of two layers and 100 queries."""
    stored = json.loads((golden.GOLDEN / f"keys_{name}.json").read_text())
    shared = stored.pop("shared")
    return {variant: shared | shapes for variant, shapes in stored.items()}


def zeros(shapes):
    """A state dict that takes no memory."""
    return {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}


def seeded(project, variant, shapes):
    """The weights that the outputs were made with."""
    shared = project == "detrex" and variant not in ("refine", "two_stage")
    state = {}
    for key, shape in shapes.items():
        name = key.removeprefix("transformer.decoder.") if "_embed." in key else key
        name = name.replace("_embed.1.", "_embed.0.") if shared else name
        state[key] = torch.from_numpy(np.asarray(seeded_parameter(name, tuple(shape), SEED)))
    return state


def thin_cfg(project, variant, *opts):
    node = "MODEL.DETR."
    opts = [node + "DIM_FEEDFORWARD", 48, node + "NUM_QUERIES", 7, node + "NUM_CLASSES", 5, *opts]
    if (project, variant) == ("detrex", "two_stage"):  # it has 256 written in
        opts += [node + "HIDDEN_DIM", 256]
    widths = (
        (64, 256, 64) if (project, variant) == ("transformers", "single_scale_dc5") else (8, 16, 4)
    )
    for key, width in zip(("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP"), widths):
        opts += [f"MODEL.RESNETS.{key}", width]
    return small_cfg(*opts, config=VARIANTS[variant])


def loaded(project, variant, path):
    """Our model with the weights of a file."""
    model = build_model(thin_cfg(project, variant)).eval()
    Checkpointer(model, needs_head=True).load(str(path), checkpointables=[])
    return model


@torch.no_grad()
def outputs(model, project):
    """Ours for the images that the project had: of transformers two, the second one smaller."""
    count = 2 if project == "transformers" else 1
    pixels = np.random.RandomState(5).standard_normal((count, 3, 96, 128)).astype(np.float32)
    images = list(torch.from_numpy(pixels))
    if count == 2:
        images[1] = images[1][:, :80, :100]
    return model.network_outputs(ImageList.from_tensors(images))
