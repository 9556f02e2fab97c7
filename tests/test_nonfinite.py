"""A step that is not finite has a cause, which is planted here, and named by the error."""

import copy
import functools
import math
import re

import pytest
import torch
from torch import nn

from detectron2_ddetr import Trainer, inputs
from detectron2_ddetr.engine.optimizer import FullModelClipAdamW
from detectron2_ddetr.engine.train_step import LastBatch, NonFiniteStepError, TrainStep
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.modeling import targets
from detectron2_ddetr.toolbox import comm

from .conftest import VARIANTS, small_cfg
from .fork_server import two_processes
from .test_meta_arch import build, sample

BOX, OTHER = (3.0, 5.0, 20.0, 11.0), (30.0, 8.0, 60.0, 50.0)
NAMES = ["a.jpg", "b.jpg", "c.jpg"]
LAYERS = "head.transformer.encoder.layers.1"


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


#: A parameter that is ruined, and the module whose own code computes with it.
WEIGHTS = {
    "backbone.stem.conv1.weight": "backbone.stem.conv1",
    "head.input_proj.0.1.bias": "head.input_proj.0.1",
    "head.query_embed.weight": "head",
    "head.transformer.level_embed": "head",  # whose code calls a method of the transformer
    "head.transformer.encoder.layers.0.self_attn.value_proj.weight": "",
    "head.transformer.encoder.layers.1.self_attn.attention_weights.bias": "",
    "head.transformer.decoder.layers.1.linear1.bias": "",
    "head.transformer.decoder.layers.0.self_attn.out_proj.bias": (
        "head.transformer.decoder.layers.0.self_attn"  # nor is this projection called
    ),
    "head.class_embed.1.weight": "",
    "head.bbox_embed.1.layers.2.bias": "",
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weight(weight):
    # Infinite, these lead to what is finite again: a box of 1, a sample that is not read.
    swallowed = weight in ("head.bbox_embed.1.layers.2.bias", "head.transformer.level_embed")
    bad = math.nan if swallowed else math.inf
    model = model_of()
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[0] = bad
    error = error_of(model)
    module, what, images, blamed = parts(error)
    assert module == (WEIGHTS[weight] or weight.rpartition(".")[0])
    assert blamed == f"a weight that was not finite before this step: {weight}"
    assert "computes" in what and "gradient" not in what
    assert images == "every image"
    assert error.remedy is None


def test_statistics_that_are_ruined():
    """Buffers are weights too, where they are read."""
    model = model_of("MODEL.RESNETS.NORM", "FrozenBN")
    model.backbone.stem.conv1.norm.running_var[2] = math.nan
    module, _, _, blamed = parts(error_of(model))
    assert module == "backbone.stem.conv1.norm"
    assert blamed.endswith("before this step: backbone.stem.conv1.norm.running_var")


@pytest.fixture
def unchecked(monkeypatch):
    """As on a GPU, where numbers are not looked at before."""
    looks = [(inputs, "target_fault"), (targets, "target_fault")]
    for module, name in looks:
        monkeypatch.setattr(module, name, lambda *args: "")
    monkeypatch.setattr("detectron2_ddetr.meta_arch.check_images", lambda *args: None)


def with_boxes(*boxes):
    return batch(instances=sample(64, 96, boxes)["instances"])


def pixels(value):
    image = torch.full((3, 64, 96), 7.0)
    image[1, 2, 3] = value
    return batch(image=image)


BAD_BOXES = {
    "NaN": (3.0, math.nan, 20.0, 11.0),
    "infinite width": (3.0, 5.0, math.inf, 11.0),
    "not of the image": (3.0, 5.0, 1e38, 1e38),
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES)
def test_a_box_is_refused_before(box):
    step = step_of(model_of())
    with pytest.raises(InputError, match=r"image 2 of the batch \(c.jpg\): box 1 is .*must be"):
        step.update(with_boxes(BOX, box), lambda losses: None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_image_is_refused_before(bad):
    step = step_of(model_of())
    with pytest.raises(InputError, match=r"image 2 of the batch \(c.jpg\): .*infinite pixels"):
        step.update(pixels(bad), lambda losses: None)


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES)
def test_box(box, unchecked):
    """Where nobody has looked before."""
    error = error_of(model_of(), with_boxes(BOX, box))
    module, _, _, blamed = parts(error)
    assert module == "the model itself" or module == "criterion"
    assert blamed.startswith("a target: image 2 of the batch (c.jpg): box 1 is [")
    assert "annotation" in error.remedy


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels(bad, unchecked):
    error = error_of(model_of(), pixels(bad))
    module, _, images, blamed = parts(error)
    assert module == "the model itself" and images == "image 2 of the batch (c.jpg)"
    assert blamed == "the input: image 2 of the batch (c.jpg) has NaN or infinite pixels"
    assert "image" in error.remedy


def test_box_without_area(monkeypatch):
    """Sound for the criterion of this package, not for one that divides by the width."""
    model = model_of()

    def loss_boxes(boxes, target_boxes, num_boxes):
        return {"loss_bbox": (boxes / target_boxes).sum(), "loss_giou": boxes.sum()}

    monkeypatch.setattr(model.criterion, "loss_boxes", loss_boxes)
    error = error_of(model, with_boxes(OTHER, (3.0, 5.0, 3.0, 11.0)))
    module, _, _, blamed = parts(error)
    assert module == "criterion" and "annotation" in error.remedy
    assert blamed == (
        "a target: image 2 of the batch (c.jpg): box 1 is [3.0, 5.0, 3.0, 11.0], (x0, y0, x1, y1) "
        "in pixels, without area"
    )


@pytest.mark.parametrize(
    "scaled, module",
    [
        # A product of two numbers of 1e29 is beyond float32, and so is the square of one.
        (["encoder.layers.0.linear1", "encoder.layers.0.linear2"], "encoder.layers.0.linear2"),
        (["encoder.layers.0.linear1"], "encoder.layers.0.norm2"),
        (["encoder.layers.1.self_attn.value_proj"], "encoder.layers.1.norm1"),
        (["decoder.layers.0.self_attn"], "decoder.layers.0.self_attn"),
    ],
)
def test_overflow(scaled, module):
    model = model_of()
    with torch.no_grad():
        for name in scaled:
            for parameter in model.head.transformer.get_submodule(name).parameters():
                parameter.mul_(1e30)
    error = error_of(model)
    found, _, images, blamed = parts(error)
    assert found == f"head.transformer.{module}" and images == "every image"
    assert blamed.startswith("an overflow: in float32, of finite numbers of at most ")
    weights = {n: p.abs().max().item() for n, p in model.named_parameters()}
    own = max(value for name, value in weights.items() if name.startswith(found))
    name, largest = max(weights.items(), key=lambda item: item[1])
    assert f"weights of at most {own:.3g}; " in blamed
    assert blamed.endswith(f"the largest weight of the model is {largest:.3g}, in {name}")
    assert error.remedy is None


def test_overflow_in_half_precision():
    model = model_of("SOLVER.AMP.ENABLED", True)
    with torch.no_grad():
        for linear in ("linear1", "linear2"):
            model.get_submodule(f"{LAYERS}.{linear}").weight.mul_(1e30)
    module, _, _, blamed = parts(error_of(model))
    assert module == f"{LAYERS}.linear2" and blamed.startswith("an overflow: in bfloat16, ")


def test_the_norm_of_finite_gradients_overflows():
    model = model_of()
    with torch.no_grad():
        model.head.class_embed[1].weight.mul_(1e30)
    error = str(error_of(model))
    assert "the gradient norm of the model is inf" in error
    assert (
        "process 0: all gradients are finite, but their norm is not. To blame is an over" in error
    )
    assert error.endswith(", in head.class_embed.1.weight")


class BadGradient(nn.Module):
    """The identity, whose gradient is not finite for one image."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x):
        root = torch.ones_like(x)
        root[self.image] = 0
        return x + (x * 0 + root).sqrt() - root.sqrt()


class FromOutside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[1, 3, 2] = math.nan
        return gradient


class CustomGradient(nn.Module):
    def forward(self, x):
        return FromOutside.apply(x)


RECOMPUTED = ["MODEL.DETR.ACTIVATION_CHECKPOINTING.ENCODER", True]


@pytest.mark.parametrize("opts", [[], RECOMPUTED], ids=["kept", "recomputed"])
@pytest.mark.parametrize("find_nonfinite", [False, True])
@pytest.mark.parametrize(
    "planted, image, operation",
    [(BadGradient(2), 2, "SqrtBackward0"), (CustomGradient(), 1, "FromOutsideBackward")],
    ids=["sqrt", "custom"],
)
def test_gradient(planted, image, operation, find_nonfinite, opts):
    """Of a forward pass in which all is finite."""
    model = build(*opts)
    plant(model, f"{LAYERS}.dropout3", planted)
    error = error_of(model, find_nonfinite=find_nonfinite)
    module, what, images, blamed = parts(error)
    assert module == f"{LAYERS}.dropout3"
    assert what == f"computes the first gradient that is not finite ({operation})"
    assert images == f"image {image} of the batch ({NAMES[image]})"
    assert blamed.startswith("a derivative that is not finite")
    assert f"Correct {type(planted).__name__}" in error.remedy


def test_gradient_of_a_loss(monkeypatch):
    """The term is named, and the parameters whose gradient it is."""
    model = model_of()
    loss_boxes = model.criterion.loss_boxes

    def with_root(boxes, *args):
        root = (boxes - boxes.detach()).square().sum().sqrt()
        return loss_boxes(boxes, *args) | {"loss_giou": root}

    monkeypatch.setattr(model.criterion, "loss_boxes", with_root)
    module, what, images, _ = parts(error_of(model))
    assert module == "criterion" and images == "every image"
    assert re.fullmatch(r"computes the first gradient of loss_giou(_\d)? that .*SqrtB.*", what)


def test_an_infinite_number_that_is_meant():
    """A mask; it is not taken for the fault that comes after it."""

    class Mask(nn.Module):
        def forward(self, x):
            return torch.full_like(x, -math.inf)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = Mask()

        def forward(self, x):
            return x + self.mask(x).exp()

    model = model_of()
    plant(model, f"{LAYERS}.dropout1", Masked())
    step_of(model, find_nonfinite=True).update(batch(), lambda losses: None)
    plant(model, f"{LAYERS}.dropout3", BadGradient(0))
    assert parts(error_of(model))[0] == f"{LAYERS}.dropout3"


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
