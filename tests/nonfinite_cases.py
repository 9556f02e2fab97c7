"""A step of a small model, the fault that is planted in it, and what its error says."""

import copy
import functools
import re

import pytest
import torch
from torch import nn

from detectron2_ddetr.engine.optimizer import FullModelClipAdamW
from detectron2_ddetr.engine.train_step import LastBatch, NonFiniteStepError, TrainStep
from detectron2_ddetr.toolbox import comm

from .conftest import VARIANTS
from .test_meta_arch import build, sample

BOX, OTHER = (3.0, 5.0, 20.0, 11.0), (30.0, 8.0, 60.0, 50.0)
NAMES = ["a.jpg", "b.jpg", "c.jpg"]
LAYERS = "head.transformer.encoder.layers.1"
RECOMPUTED = ["MODEL.DETR.ACTIVATION_CHECKPOINTING.ENCODER", True]


@functools.cache
def _built(opts, config):
    return build(*opts, config=config)


def model_of(*opts, config=VARIANTS["refine"]):
    return copy.deepcopy(_built(opts, config))


def batch(**changes):
    """Three images, of which the last is changed."""
    samples = [sample(64, 96, [BOX, OTHER], seed=i) | {"file_name": n} for i, n in enumerate(NAMES)]
    samples[-1] |= changes
    return samples


def step_of(model, **options):
    optimizer = FullModelClipAdamW(model.parameters(), max_norm=0.1, lr=1e-4)
    loader = LastBatch(lambda: [batch()])
    return TrainStep(model, loader, optimizer, **options)


def error_of(model, images=None, **options):
    """That of a step, which changes no weight and leaves no hook."""
    step = step_of(model, **options)
    images = batch() if images is None else images
    step.data_loader.batch = images

    def check(losses):
        # Where all are finite there is nothing to write them to.
        finite = all(loss.isfinite() for loss in losses.values())
        if not all(comm.all_gather(finite)):
            step._write_metrics(losses, 0.0)

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteStepError) as error:
        step.update(images, check)
    for old, new in zip(before, model.parameters()):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    assert number_of_hooks(model) == 0
    return error.value


def number_of_hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def parts(error):
    """The name of the module, what it did, the images and what is to blame."""
    found = re.search(
        r"process 0: (.+?) \(\w+\) (.+?): (?:NaN|inf)(?:, in (.+?))?\. To blame is (.*)",
        str(error),
    )
    assert found, str(error)
    return found.groups()


def plant(model, name, module):
    """Puts `module` in the place of another one."""
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, module)
    return module


class BadGradient(nn.Module):
    """The identity, whose gradient is not finite for one image."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x):
        root = torch.ones_like(x)
        root[self.image] = 0
        return x + (x * 0 + root).sqrt() - root.sqrt()
