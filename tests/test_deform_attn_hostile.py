"""Wrong arguments: public functions and operators refuse them, in words, before they read."""

import os
import re
import subprocess
import sys

import pytest
import torch

from detectron2_ddetr.modeling.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused

from .conftest import ROOT
from .hostile_cases import CASES, HUGE, MEMORY, arguments, call
from .op_cases import IMPLEMENTATIONS, NAMES, SEED, make_problem
from .test_deform_attn_op import entries

implementations = pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "meta"])


@implementations
@pytest.mark.parametrize("name", NAMES)
def test_refused(name, implementation):
    """Each wrong argument, alone, is refused in words about it; the right ones are taken."""
    problem = make_problem("fused" in name)
    call(name, arguments(name, problem), implementation)
    for _, argument, change, message in (case for case in CASES if case[0] == name):
        if implementation == "meta" and re.search("cover|dense", message):
            continue  # spatial_shapes have no numbers, and a sparse tensor has no place there
        args = arguments(name, problem)
        args[argument] = change(args[argument])
        with pytest.raises((RuntimeError, ValueError), match=message):
            call(name, args, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(-3, -5), (2, 7), (1, 1)], r"must not be negative, got \(-3, -5\)"),
        ([(HUGE, HUGE), (2, 14), (2, 1)], "spatial_shapes .*(cover|larger)"),
        ([(2**62, 4), (2, 14), (2, 1)], "spatial_shapes .*(cover|larger)"),
        ([(2**63 - 1, 2), (2, 14), (2, 2)], "spatial_shapes .*(cover|larger)"),
        ([(3, 5), (2, 7), (1, 0)], "spatial_shapes cover 29 positions.* has 30"),
    ],
)
def test_refused_numbers(name, implementation, sizes, message):
    """So are sizes in a tensor whose product does not fit, even where what overflows would."""
    args = arguments(name, make_problem())
    args["spatial_shapes"] = torch.tensor(sizes)
    with pytest.raises((RuntimeError, ValueError), match=message):
        call(name, args, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_freed_memory(name, implementation):
    """A storage that was freed under its tensor is not read."""
    problem = make_problem("fused" in name)
    for argument, x in arguments(name, problem).items():
        if isinstance(x, torch.Tensor):
            args = arguments(name, make_problem("fused" in name))
            args[argument] = args[argument].clone()
            args[argument].untyped_storage().resize_(8)
            with pytest.raises((RuntimeError, ValueError), match=f"of {argument} was freed"):
                call(name, args, implementation)


@pytest.mark.parametrize("name", NAMES)
def test_operators_on_two_devices(name):
    """Whichever tensor is elsewhere, both devices are named; only sizes may be on the CPU."""
    problem = make_problem("fused" in name)
    for argument, x in arguments(name, problem).items():
        if not isinstance(x, torch.Tensor):
            continue
        for alone in (True, False):  # the only one on meta, or the only one that is not
            args = {
                k: v.to("meta") if isinstance(v, torch.Tensor) and (k == argument) == alone else v
                for k, v in arguments(name, problem).items()
            }
            if argument == "spatial_shapes" and not alone:
                call(name, args)
                continue
            with pytest.raises(ValueError, match="(cpu.*value.*meta|meta.*value.*cpu)"):
                call(name, args)


#: What is wrong: how the arguments change, and what the message says.
FUSED_ERRORS = {
    "value": (lambda v, s, r, o, w, p: (v[0], s, r, o, w, p), r"\(N, S, M, D\).*\(30, 2, 3\)"),
    "value_dtype": (lambda v, s, r, o, w, p: (v.long(), s, r, o, w, p), "16, 32 or 64.*int64"),
    "positions": (lambda v, s, r, o, w, p: (v[:, 1:], s, r, o, w, p), "cover 30 .*value has 29"),
    "sharing": (
        lambda v, s, r, o, w, p: (v, s, r, o[:, :, :, 1:], w[..., 1:], None),
        "5 points.*3 levels",
    ),
    "reference": (
        lambda v, s, r, o, w, p: (v, s, r[..., :1], o, w, p),
        r"2 numbers.*4.*\(2, 3, 3, 1\)",
    ),
    "reference_dim": (lambda v, s, r, o, w, p: (v, s, r[0], o, w, p), r"R\).*\(3, 3, 2\)"),
    "points": (lambda v, s, r, o, w, p: (v, s, r, o, w, [3, 3]), r"each of 3 levels.*\[3, 3\]"),
    "no_point": (lambda v, s, r, o, w, p: (v, s, r, o, w, [3, 3, 0]), r"at least 1.*\[3, 3, 0\]"),
    "too_many": (
        lambda v, s, r, o, w, p: (v, s, r, o, w, [3, 2, 2]),
        r"\(2, 3, 2, 7\).*\(2, 3, 2, 6\)",
    ),
    "offsets": (
        lambda v, s, r, o, w, p: (v, s, r, o[..., :1], w, p),
        r"\(2, 3, 2, 6\).*\(2, 3, 2, 6, 1\)",
    ),
    "logits": (
        lambda v, s, r, o, w, p: (v, s, r, o, w[:, 1:], p),
        r"\(2, 3, 2, 6\).*\(2, 2, 2, 6\)",
    ),
    "heads": (
        lambda v, s, r, o, w, p: (v, s, r, o[:, :, 1:], w[:, :, 1:], p),
        r"\(2, 3, 2, 6\).*\(2, 3, 1, 6\)",
    ),
    "images": (lambda v, s, r, o, w, p: (v, s, r[:1], o, w, p), r"\(1, 3\).*\(2, 3\)"),
    "levels": (lambda v, s, r, o, w, p: (v, s, r[:, :, 1:], o, w, p), r"\(2, 2\).*\(2, 3\)"),
}


@pytest.mark.parametrize("error", FUSED_ERRORS)
def test_fused_errors(error):
    """What does not fit is refused with both sides named."""
    change, message = FUSED_ERRORS[error]
    problem = make_problem(True)
    value, *rest = problem.tensors
    arguments = (value, problem.sizes, *rest, problem.level_points)
    ms_deform_attn_fused(*arguments)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn_fused(*change(*arguments))


def test_value_dtype_error():
    """Integers are refused; what else can be wrong is in test_ms_deform_attn.py."""
    problem = make_problem()
    with pytest.raises(ValueError, match="16, 32 or 64 bits.*int64"):
        problem.call(problem.tensors[0].long(), *problem.tensors[1:])


@entries
def test_negative_sizes(fused):
    """Two of them would make a size that fits."""
    problem = make_problem(fused, [(2, 3), (1, 4)])
    problem.call()
    problem.sizes[0] = (-2, -3)
    with pytest.raises(ValueError, match=r"negative.*\(-2, -3\)"):
        problem.call()


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_public_functions_on_two_devices(fused):
    """They name the tensor and both devices."""
    problem = make_problem(fused)
    value, *rest = problem.tensors
    for i in range(len(rest)):
        tensors = [x.to("meta") if i == j else x for j, x in enumerate(rest)]
        with pytest.raises(ValueError, match=r"\w+_\w+ is on meta but value is on cpu"):
            problem.call(value, *tensors)
    with pytest.raises(ValueError, match=r"\w+_\w+ is on cpu but value is on meta"):
        problem.call(value.to("meta"), *rest)
    if not fused:
        sizes = torch.tensor(problem.sizes)
        with pytest.raises(ValueError, match="spatial_shapes is on meta but value is on cpu"):
            ms_deform_attn(value, sizes.to("meta"), *rest)
        with pytest.raises(ValueError, match="spatial_shapes must be integers, got torch.float32"):
            ms_deform_attn(value, sizes.float(), *rest)
    last = [*rest[:-1], rest[-1].cdouble()]
    with pytest.raises(ValueError, match="attention_.* must be floating point, got .*complex128"):
        problem.call(value, *last)
    assert problem.call(*(x.to("meta") for x in problem.tensors)).device.type == "meta"


@implementations
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("empty", ["images", "queries", "heads", "dim", "sizes", "one_size"])
def test_no_elements(fused, empty, implementation):
    """Where there is nothing to sum all results are zero, and as large as they must be."""
    sizes = {"sizes": [(0, 5), (3, 0)], "one_size": [(3, 4), (0, 2)]}.get(empty, [(3, 4), (1, 2)])
    problem = make_problem(fused, [(3, 4), (1, 2)], dtype=torch.float32)
    value, *rest = problem.tensors
    axes = {"images": 0, "queries": 1, "heads": 2}
    if empty in axes:
        value = value if empty == "queries" else value.narrow(axes[empty], 0, 0)
        rest = [
            x if empty == "heads" and fused and i == 0 else x.narrow(axes[empty], 0, 0)
            for i, x in enumerate(rest)
        ]
    elif empty == "dim":
        value = value[..., :0]
    problem.sizes = sizes
    problem.tensors = [value[:, : sum(h * w for h, w in sizes)], *rest]
    name = "ms_deform_attn_fused" if fused else "ms_deform_attn"
    output = call(name, arguments(name, problem), implementation)
    args = arguments(f"{name}_backward", problem)
    assert output.shape == args["grad_output"].shape
    if empty == "one_size" and implementation == "pytorch":
        return  # grid_sample takes no level without cells
    grads = call(f"{name}_backward", args, implementation)
    assert [x.shape for x in grads] == [x.shape for x in problem.tensors]
    if implementation != "meta" and empty != "one_size":
        assert all(not x.any() for x in (output, *grads))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_fuzz(implementation):
    """Hundreds of calls, right and wrong, each of which returns or raises: no process ends."""
    calls = 1500 if implementation == "compiled" else 500
    script = f"from tests.hostile_cases import fuzz; fuzz({SEED}, {calls}, '{implementation}')"
    options = os.environ.get("ASAN_OPTIONS", "") + ":allocator_may_return_null=1"
    options += f":max_allocation_size_mb={MEMORY >> 20}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT,
        env={**os.environ, "ASAN_OPTIONS": options.lstrip(":")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    last = done.stdout.rpartition("\n")[2]
    info = f"DDETR_TEST_SEED={SEED}, call {last}: {done.stderr[-6000:]}"
    assert done.returncode == 0, info
    returned = int(last.split()[0])
    assert calls / 10 < returned < calls * 9 / 10, info
