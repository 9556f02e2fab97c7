"""The hunt for what is not finite: in parts of a batch, in two processes, and at which cost."""

import math
import re

import pytest
import torch
from torch import nn

from detectron2_ddetr import Trainer

from .conftest import VARIANTS, small_cfg
from .fork_server import two_processes
from .nonfinite_cases import (
    LAYERS,
    RECOMPUTED,
    BadGradient,
    batch,
    error_of,
    model_of,
    number_of_hooks,
    parts,
    plant,
    step_of,
)
from .test_meta_arch import build


@pytest.mark.parametrize("find_nonfinite", [False, True])
def test_accumulation(find_nonfinite):
    """Passes of image 0, and of images 1 and 2; numbers are those of the batch."""
    huge = torch.full((3, 64, 96), 1e38)
    error = error_of(model_of(), batch(image=huge), parts=2, find_nonfinite=find_nonfinite)
    _, _, images, blamed = parts(error)
    image = "image 2 of the batch (c.jpg)"
    assert images == image
    assert blamed == f"the input: {image} has pixels of up to 1e+38, where 255 is white"


def _process(rank, path):
    """A rank of two, of which the second has the bad image: in the losses, then in a gradient."""
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    said = []
    for planted in (False, True):
        model = build()
        huge = {} if planted else {"image": torch.full((3, 64, 96), 1e38)}
        if planted and rank == 1:
            plant(model, f"{LAYERS}.dropout3", BadGradient(1))
        distributed = torch.nn.parallel.DistributedDataParallel(model)
        images = batch(**huge)[:1] if rank == 0 else batch(**huge)[1:]
        error = error_of(distributed, images)
        said.append([str(error), error.remedy])
    torch.save(said, f"{path}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    """All gradients are ruined when they are added up; the one that did it says so, to all."""
    path = tmp_path / "rendezvous"
    two_processes(_process, str(path))
    for rank in range(2):
        faults = torch.load(f"{path}.{rank}", weights_only=True)
        for (said, remedy), words, remedy_words, blamed in zip(
            faults,
            ["losses of process 1: ", "the gradient norm of the model is"],
            ["remove this image", "Correct BadGradient"],
            ["the input: image 1 of the batch (c.jpg)", "a derivative"],
        ):
            assert words in said and remedy_words in remedy
            (cause,) = re.findall(r"^process \d: .*", said, flags=re.MULTILINE)
            assert cause.startswith("process 1: ") and "in image 1 of the batch (c.jpg)" in cause
            assert f"To blame is {blamed}" in cause
        assert f"process 1: {LAYERS}.dropout3 (BadGradient) computes the first" in said


class Spy(nn.Module):
    """Notes what is there and what is drawn when it is called."""

    def __init__(self, bad_calls=()):
        super().__init__()
        self.hooks, self.drawn, self.bad_calls = [], [], bad_calls

    def forward(self, x):
        self.hooks.append(number_of_hooks(self.model[0]))
        self.drawn.append(torch.rand(3))
        return x * (math.nan if len(self.drawn) in self.bad_calls else 1)


def spied(**kwargs):
    model = model_of()
    spy = plant(model, f"{LAYERS}.dropout1", Spy(**kwargs))
    spy.model = [model]  # in a list, or it would be its own ancestor
    return model, spy


def test_costs_nothing_as_long_as_all_is_finite():
    """One pass without any hook; with the key there are some, on every module."""
    for find_nonfinite in (False, True):
        model, spy = spied()
        step = step_of(model, find_nonfinite=find_nonfinite)
        step.update(batch(), lambda losses: None)
        assert spy.hooks == [find_nonfinite * 2 * sum(1 for _ in model.modules())]
        assert number_of_hooks(model) == 0


def test_the_second_look_sees_the_same_random_numbers():
    model, spy = spied(bad_calls=(1, 2))
    assert parts(error_of(model))[0] == f"{LAYERS}.dropout1"
    torch.testing.assert_close(spy.drawn[0], spy.drawn[1], rtol=0, atol=0)
    assert spy.hooks[0] == 0 < spy.hooks[1] and len(spy.hooks) == 2


def test_what_does_not_repeat():
    model, spy = spied(bad_calls=(1,))
    error = error_of(model)
    assert "every number was finite when the same step was taken once more" in str(error)
    assert "SOLVER.FIND_NONFINITE True" in error.remedy and len(spy.drawn) == 2
    model, spy = spied(bad_calls=(1,))
    assert parts(error_of(model, find_nonfinite=True))[0] == f"{LAYERS}.dropout1"
    assert len(spy.drawn) == 1


@pytest.mark.parametrize(
    "opts, variant", [([], "refine"), (["SOLVER.AMP.ENABLED", True, *RECOMPUTED], "two_stage")]
)
def test_finite_steps_are_equal_to_the_bit(opts, variant):
    """Losses and weights, with and without a hunt in every step."""
    runs = []
    for find_nonfinite in (False, True):
        model = build("MODEL.DETR.DROPOUT", 0.2, *opts, config=VARIANTS[variant])
        step = step_of(model, find_nonfinite=find_nonfinite, parts=2)
        losses = []
        torch.manual_seed(3)
        for _ in range(3):
            step.update(batch(), lambda of_step: losses.append(of_step))
        runs.append((losses, model.state_dict()))
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)


def test_the_key(tmp_path):
    opts = ["DATASETS.TRAIN", ("bccd_train",), "OUTPUT_DIR", str(tmp_path)]
    for find_nonfinite in (False, True):
        cfg = small_cfg(
            "MODEL.BACKBONE.FREEZE_AT", 0, *opts, "SOLVER.FIND_NONFINITE", find_nonfinite
        )
        assert Trainer(cfg)._trainer.find_nonfinite == find_nonfinite
