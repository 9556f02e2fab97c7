"""Inputs of the operator, what it must give for them, and its two implementations on a CPU."""

import contextlib
import dataclasses
import os
import random

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2_ddetr.modeling import HAS_CPU_KERNELS
from detectron2_ddetr.modeling.ops import ms_deform_attn as definition
from detectron2_ddetr.modeling.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused

from .op_reference import dense_reference, fused_pixels

#: Random tests are repeated with the number that they print.
SEED = int(os.environ.get("DDETR_TEST_SEED") or random.SystemRandom().getrandbits(32))

OPS = torch.ops.detectron2_ddetr
NAMES = [
    "ms_deform_attn", "ms_deform_attn_backward",
    "ms_deform_attn_fused", "ms_deform_attn_fused_backward",
]  # fmt: skip
needs_kernels = pytest.mark.skipif(not HAS_CPU_KERNELS, reason="the CPU kernels are not built")
IMPLEMENTATIONS = [pytest.param("compiled", marks=needs_kernels), "pytorch"]


class _PyTorchKernels(TorchDispatchMode):
    """Sends the operators to the functions that serve devices without a compiled kernel."""

    functions = {getattr(OPS, name).default: getattr(definition, f"_{name}") for name in NAMES}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.functions.get(func, func)(*args, **(kwargs or {}))


def using(implementation):
    """A context in which the operators run compiled or in PyTorch, forward and backward."""
    return _PyTorchKernels() if implementation == "pytorch" else contextlib.nullcontext()


def coordinate_dtype(dtype):
    """Of locations and sums inside."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclasses.dataclass
class Problem:
    """One call: `tensors` are the float arguments of the entry in their order."""

    fused: bool
    sizes: list  # (H_l, W_l)
    level_points: list
    tensors: list

    def call(self, *tensors):
        """The public function, of other tensors where they are given."""
        value, *rest = tensors or self.tensors
        if self.fused:
            return ms_deform_attn_fused(value, self.sizes, *rest, self.level_points)
        return ms_deform_attn(value, torch.tensor(self.sizes), *rest)

    def expected(self, *tensors, keep=1):
        """The reference, in the dtype of the tensors; samples where `keep` is 0 are left out."""
        value, *rest = tensors or self.tensors
        attention = rest[2].softmax(-1) if self.fused else rest[1].flatten(3)
        pixels = self.pixels(*rest)
        return dense_reference(value, self.sizes, self.level_points, pixels, attention * keep)

    def pixels(self, *rest):
        """Where the samples lie, (N, Q, M, K, 2), in cells."""
        if self.fused:
            return fused_pixels(*rest[:2], self.sizes, self.level_points)
        extent = rest[0].new_tensor([[w, h] for h, w in self.sizes])
        return (rest[0] * extent[:, None] - 0.5).flatten(3, 4)

    def to(self, dtype):
        return dataclasses.replace(self, tensors=[x.to(dtype) for x in self.tensors])

    def leaves(self):
        """The same numbers with the same strides, to be differentiated."""
        return [x.detach().requires_grad_() for x in self.tensors]

    def run(self, grad_output=None):
        """The output, and the gradients of all tensors."""
        leaves = self.leaves()
        output = self.call(*leaves)
        grad_output = torch.ones_like(output) if grad_output is None else grad_output
        return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def make_problem(
    fused=False, sizes=((3, 5), (2, 7), (1, 1)), points=2, images=2, queries=3, heads=2, dim=3,
    numbers=2, dtype=torch.float64, point_dtype=None, seed=0, margin=0.01,
):  # fmt: skip
    """
    Samples from two cells outside each level to two cells outside at the other end.

    Args:
        points: of each level, or a list of them.
        numbers: of a reference of the fused entry.
        point_dtype: of all that is not the value; that of coordinates by default.
        margin: no sample lies nearer to a cell's centre than this along x or y, in cells, so that
            derivatives exist.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    sizes = list(sizes)
    level_points = [points] * len(sizes) if isinstance(points, int) else list(points)
    point_dtype = point_dtype or coordinate_dtype(dtype)
    samples = (images, queries, heads, sum(level_points))
    value = 2 * draw(images, sum(h * w for h, w in sizes), heads, dim) - 1
    references = 0.1 + 0.8 * draw(images, queries, len(sizes), numbers)
    references = references.to(coordinate_dtype(dtype))  # never 16-bit
    logits = 4 * draw(*samples) - 2
    extent = torch.tensor([[w, h] for h, w in sizes], dtype=torch.float64)
    extent = extent.repeat_interleave(torch.tensor(level_points), dim=0)

    def points_at(pixels):
        """What the entry calls points, rounded; with references offsets, else locations."""
        if not fused:
            return ((pixels + 0.5) / extent).to(point_dtype)
        zero = fused_pixels(references.double(), 0 * pixels, sizes, level_points)
        one = fused_pixels(references.double(), 0 * pixels + 1, sizes, level_points)
        return ((pixels - zero) / (one - zero)).to(point_dtype)

    def pixels_of(points):
        if not fused:
            return points.double() * extent - 0.5
        return fused_pixels(references.double(), points.double(), sizes, level_points)

    chosen = points_at((extent + 4) * draw(*samples, 2) - 2.5)
    while True:
        pixels = pixels_of(chosen)
        bad = (pixels - pixels.round()).abs() < margin
        if not bad.any():
            break
        chosen = torch.where(bad, points_at((extent + 4) * draw(*samples, 2) - 2.5), chosen)
    tensors = [value.to(dtype)]
    if fused:
        tensors += [references, chosen, logits.to(point_dtype)]
    else:
        shape = (*samples[:3], len(sizes), level_points[0] if level_points else 0)
        tensors += [chosen.view(*shape, 2), logits.softmax(-1).to(point_dtype).view(shape)]
    return Problem(fused, sizes, level_points, tensors)


def check_problem(problem, implementation):
    """The output, and all gradients for a random one of the output, against the reference."""
    leaves = problem.leaves()
    with using(implementation):
        output = problem.call(*leaves)
        grad_output = torch.rand_like(output)
        output.backward(grad_output)
    check_gradients(problem, leaves, grad_output, output)


def check_gradients(problem, tensors, grad_output, output, info=""):
    """
    The output, and the gradients of those of `tensors` that have one, against the reference.

    Bounds are those of rounding, for a problem of numbers up to one: sums and coordinates are
    float32 (float64), so the error is some eps of what is summed in absolute value, and of the
    width of the map, by which a location is multiplied. Results are then rounded to their dtype.
    """
    exact = [x.detach().cpu().double() for x in tensors]
    grad_output, output = grad_output.cpu(), output.cpu()
    keep = problem.pixels(*exact[1:]).isfinite().all(-1)  # what is not finite reads nothing
    exact[1:] = [x.nan_to_num(0.3, 0.3, 0.3) for x in exact[1:]]
    exact = [x.requires_grad_() for x in exact]
    expected = problem.expected(*exact, keep=keep)
    gradients = torch.autograd.grad(expected, exact, grad_output.double())
    summed = _absolute_sums(problem, exact, grad_output.double())
    side = max((max(size) for size in problem.sizes), default=1)
    eps = 16 * torch.finfo(coordinate_dtype(tensors[0].dtype)).eps * (1 + side)

    names = ["value", "reference_points", "sampling_offsets", "attention_logits"]
    if not problem.fused:
        names = ["value", "sampling_locations", "attention_weights"]
    results = [("output", output, expected, summed[0])]
    for name, x, *wanted in zip(names, tensors, gradients, summed[1:]):
        if x.grad is not None:
            results.append((f"gradient of {name}", x.grad.cpu(), *wanted))
    for name, got, wanted, scale in results:
        rounding = 0.0 if got.dtype.itemsize > 2 else torch.finfo(got.dtype).eps / 2
        floor = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
        assert_close(
            got.double(), wanted.detach(),
            rtol=1.01 * rounding, atol=eps * scale + floor,
            msg=lambda text: f"{name} of {info}: {text}",
        )  # fmt: skip


def _absolute_sums(problem, exact, grad_output):
    """For the output and each gradient, the largest sum of absolute values behind an element."""
    value, *rest = (x.detach() for x in exact)
    attention = rest[2].softmax(-1) if problem.fused else rest[1].flatten(3)
    value, attention = value.abs().requires_grad_(), attention.requires_grad_()
    pixels = problem.pixels(*rest)
    output = dense_reference(value, problem.sizes, problem.level_points, pixels, attention)
    by_value, by_attention = torch.autograd.grad(output, (value, attention), grad_output.abs())

    def largest(x):
        return x.abs().max().item() if x.numel() else 0.0

    # The slope of a tent is one; a sample lies under at most two of them along the other axis.
    dots = grad_output.abs().unflatten(2, (value.shape[2], -1)).sum(-1)
    by_pixel = 2 * largest(dots) * largest(value) * largest(attention)
    side = max((max(size) for size in problem.sizes), default=1)
    # The rounding of a coordinate, an eighth of the bound, moves a weight however small it is.
    moved = largest(attention) / 8
    result = [
        largest(output) + moved * largest(value),
        largest(by_value) + moved * largest(grad_output),
    ]
    if not problem.fused:
        return result + [side * by_pixel, largest(by_attention)]
    per_reference = attention.shape[2] * max(problem.level_points, default=1)
    reach = max(1.0, largest(rest[1])) * side * by_pixel
    return result + [per_reference * reach, side * by_pixel, 2 * largest(by_attention)]


def _packed(x):
    """The middle third of a projection that makes three values at once."""
    packed = x.new_empty(*x.shape[:-2], 3, *x.shape[-2:])
    packed.select(-3, 1).copy_(x)
    return packed.select(-3, 1)


def _misaligned(x):
    """One element behind the start of its storage."""
    storage = x.new_empty(x.numel() + 1)
    return storage[1:].view(x.shape).copy_(x)


def _sparse(x):
    """Every second element along the last axis."""
    return x.new_empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)


#: Each gives the same numbers with other strides; the last one repeats those of the first image.
LAYOUTS = {
    "contiguous": lambda x: x,
    "packed": _packed,
    "misaligned": _misaligned,
    "sparse": _sparse,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "images_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand(x.shape),
}


#: D and the sides of levels of random cases.
WIDTHS = [1, 2, 3, 8, 16, 30, 32, 33, 64, 71, 130]
SIDES = [1, 1, 2, 3, 5, 12]


def random_problem(rng, fused):
    """Small sizes of every kind; few cells under many samples, and few samples over many cells."""
    levels = rng.randint(1, 8)
    dtype = rng.choice([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    points = [rng.randint(1, 8) for _ in range(levels)]
    return make_problem(
        fused,
        sizes=[(rng.choice(SIDES), rng.choice(SIDES)) for _ in range(levels)],
        points=points if fused and rng.random() < 0.5 else points[0],
        images=rng.choice([0, 1, 1, 2, 3]),
        queries=rng.choice([0, 1, 2, 5, 5, 20]),
        heads=rng.choice([1, 2, 3]),
        dim=1025 if rng.random() < 0.01 else rng.choice(WIDTHS),
        numbers=rng.choice([2, 4]),
        dtype=dtype,
        point_dtype=rng.choice([dtype, coordinate_dtype(dtype)]),
        seed=rng.getrandbits(60),
    )


def check_random_case(fused, case, device="cpu"):
    """A call that was never made before: shapes, dtypes, strides, a subset of the gradients."""
    rng = random.Random(f"{SEED} {fused} {case}")
    problem = random_problem(rng, fused)
    layouts = [rng.choice(list(LAYOUTS)) for _ in problem.tensors]
    for i in (1, 2) if fused else (1,):  # samples and references of one image belong together
        layouts[i] = "transposed" if layouts[i] == "expanded" else layouts[i]
    needed = [rng.random() < 0.7 for _ in problem.tensors]
    grad_layout = rng.choice([*LAYOUTS, "sum"])
    info = (
        f"case {case} with DDETR_TEST_SEED={SEED}: {problem.sizes}, {problem.level_points} points, "
        f"{[(tuple(x.shape), x.dtype) for x in problem.tensors]}, {layouts}, needed {needed}, "
        f"output gradient {grad_layout}"
    )
    tensors = [
        LAYOUTS[layout](x.to(device)).detach().requires_grad_(need)
        for layout, x, need in zip(layouts, problem.tensors, needed)
    ]
    try:
        output = problem.call(*tensors)
        generator = torch.Generator().manual_seed(case)
        grad_output = (2 * torch.rand(output.shape, generator=generator) - 1).to(output)
        if grad_layout == "sum":
            grad_output = torch.ones_like(output)
            if any(needed):
                output.sum().backward()  # an expanded scalar
        else:
            grad_output = LAYOUTS[grad_layout](grad_output)
            if any(needed):
                output.backward(grad_output)
    except Exception as error:
        raise AssertionError(info) from error
    assert output.dtype == problem.tensors[0].dtype, info
    assert [x.grad is not None for x in tensors] == needed, info
    check_gradients(problem, tensors, grad_output, output, info)
