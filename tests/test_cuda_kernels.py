"""The CUDA kernels, run thread by thread on the CPU (tests/cuda_emulation) against PyTorch."""

import ctypes
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from .cuda_kernel_cases import (
    TYPES,
    Case,
    assert_close,
    check,
    gradient_like,
    make_case,
    reference,
    reference_gradients,
    run,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """DDETR_EMULATION_FLAGS adds compiler flags, such as -fsanitize=address,undefined."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler, which emulating the CUDA kernels needs")
    target = tmp_path_factory.mktemp("emulation") / "kernels.so"
    flags = os.environ.get("DDETR_EMULATION_FLAGS", "").split()
    folders = [f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{ROOT / 'tests' / 'cuda_emulation'}"]
    source = ROOT / "tests" / "cuda_emulation" / "driver.cpp"
    command = [compiler, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", *flags, *folders, source]
    subprocess.run([*command, "-o", target], check=True)
    library = ctypes.CDLL(str(target))
    library.ms_deform_attn_emulated.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("references", [0, 2, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 16, 30, 32, 64, 71])
def test_channels(library, channels, references):
    check(library, make_case(channels=channels, references=references))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("references, same", [(0, True), (2, True), (4, True), (4, False)])
def test_types(library, dtype, references, same):
    input_dtype = dtype if same or dtype == torch.float64 else torch.float32
    for channels in (5, 32, 72):
        check(
            library,
            make_case(
                channels=channels, references=references, dtype=dtype, input_dtype=input_dtype
            ),
        )


@pytest.mark.parametrize("references", [0, 2, 4])
@pytest.mark.parametrize(
    "shapes, points",
    [
        (((4, 9),), (1,)),
        (((4, 9), (9, 4)), (20, 23)),  # More samples than lanes.
        (((2, 3),) * 5, (1, 0, 4, 2, 7)),
        (((1, 6), (6, 1), (1, 1)), (5, 5, 5)),
        (((1, 2),) * 32, (1,) * 32),
        (((3, 3),), (900,)),  # The shared memory of a block holds three warps of backward.
    ],
)
def test_levels(library, shapes, points, references):
    for heads in (1, 3):
        check(library, make_case(shapes, points, heads=heads, references=references))
    check(library, make_case(shapes, points, references=references), on_device=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_of_an_encoder_are_tiled(library, dtype):
    shapes = ((9, 17), (5, 8), (2, 3), (1, 1))
    queries = sum(height * width for height, width in shapes)
    case = make_case(shapes, (1, 1, 2, 1), 1, queries, 1, 32, references=2, dtype=dtype)
    assert_close(run(library, case), reference(case), dtype)
    assert torch.equal(run(library, case), run(library, case, on_device=True))  # Not tiled.


def test_many_images(library):
    """More than fit into gridDim.z, which ends at 5 in the emulation."""
    check(library, make_case(images=11))


def test_borders(library):
    height, width = 3, 5
    for edge in (-1.0, -0.5, 0.0, 1.0, width - 1.0, width - 0.5, float(width)):
        around = torch.tensor(edge, dtype=torch.float64)
        pixels = torch.stack([around - 1e-3, around, around + 1e-3])
        inputs = torch.stack([(pixels + 0.5) / width, torch.full((3,), 0.4)], -1)
        inputs = torch.cat([inputs, inputs.flip(1)])[:, None].expand(-1, 2, -1)
        generator = torch.Generator().manual_seed(0)
        case = Case(
            torch.tensor([[height, width]]),
            [6],
            torch.rand(1, height * width, 2, 8, generator=generator).double() + 1,
            inputs.transpose(0, 1)[None, None].contiguous(),  # (1, 1, 2, 6, 2)
            torch.rand(1, 1, 2, 6, generator=generator).double(),
        )
        check_forward = run(library, case)
        assert_close(check_forward, reference(case), torch.float64)
        grads = run(library, case, gradient_like(case))
        expected = reference_gradients(case, gradient_like(case))
        assert_close(grads["value"], expected["value"], torch.float64)
        assert_close(grads["weights"], expected["weights"], torch.float64)
        if edge in (-1.0, float(width)):  # On the edge itself is outside.
            assert torch.equal(grads["inputs"][0, 0, :, 1], torch.zeros(2, 2).double())


@pytest.mark.parametrize("references", [0, 2, 4])
def test_what_is_not_finite_reads_nothing(library, references):
    case = make_case(channels=32, references=references)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e20, -1e20])
    case.inputs[:, 0] = bad[torch.arange(case.inputs[:, 0].numel()) % 5].view_as(case.inputs[:, 0])
    case.inputs[:, 1, 0, 2, 0] = torch.nan  # And one among others.
    check_safe = replace(case, inputs=torch.where(case.inputs.abs() < 1e4, case.inputs, 1e4))
    for many in (False, True):
        output = run(library, case, many=many)
        assert torch.equal(output[:, 0], torch.zeros_like(output[:, 0]))
        assert_close(output, reference(check_safe), torch.float32)
    expected = reference_gradients(check_safe, gradient_like(case))
    got = run(library, case, gradient_like(case))
    for name in got:
        assert_close(got[name], expected[name], torch.float32)
    assert torch.equal(got["inputs"][:, 0], torch.zeros_like(got["inputs"][:, 0]))
    assert torch.equal(got["weights"][:, 0], torch.zeros_like(got["weights"][:, 0]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_references_that_are_not_finite_read_nothing(library, bad):
    case = make_case(channels=32, references=4)
    case.references[:, 0, :, 2:] = bad
    output = run(library, case)
    assert torch.equal(output[:, 0], torch.zeros_like(output[:, 0]))
    for name, grad in run(library, case, gradient_like(case)).items():
        if name != "value":
            assert torch.equal(grad[:, 0], torch.zeros_like(grad[:, 0])), name


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_only_the_footprint_is_read(library, poison):
    """Every position is poisoned but the corners of the samples; some samples are outside."""
    height, width = 4, 6
    pixels = torch.tensor([[-0.4, -0.3], [5.3, 3.2], [2.6, 1.5], [7.0, 1.0], [3.0, torch.nan]])
    value = torch.full((height, width), poison)
    for y, x in ((0, 0), (3, 5), (1, 2), (1, 3), (2, 2), (2, 3)):
        value[y, x] = 1 + x + y
    case = Case(
        torch.tensor([[height, width]]),
        [5],
        value.flatten()[None, :, None, None].expand(1, -1, 1, 32),
        ((pixels + 0.5) / torch.tensor([width, height]))[None, None, None],
        torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])[None, None, None],
    )
    case = replace(case, value=case.value.contiguous())
    clean = replace(case, value=case.value.nan_to_num(0, 0))
    finite = replace(clean, inputs=clean.inputs.nan_to_num(9))
    for many in (False, True):
        assert_close(run(library, case, many=many), reference(finite), torch.float32)
    expected = reference_gradients(finite, gradient_like(case))
    got = run(library, case, gradient_like(case))
    for name in got:
        assert_close(got[name], expected[name], torch.float32)
    inside = replace(case, value=torch.where(case.value == 1, poison, case.value))
    assert not run(library, inside).isfinite().any()
    if poison == torch.inf:  # Also at a border an infinite value stays what it is.
        assert run(library, inside).eq(torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_and_alignment(library, dtype):
    case = make_case(channels=32, references=2, dtype=dtype)
    images, positions, heads, channels = case.value.shape
    packed = torch.randn(images, positions, heads, 3 * channels).to(dtype)
    heads_first = case.value.transpose(1, 2).contiguous().transpose(1, 2)
    shifted = torch.empty(case.value.numel() + 1, dtype=dtype)[1:].view_as(case.value)
    for view in (
        packed[..., channels : 2 * channels],
        packed[..., 1 : channels + 1],
        torch.randn(images, positions, heads * channels + 1)
        .to(dtype)[..., :-1]
        .unflatten(2, (heads, channels)),
        heads_first,
        shifted.copy_(case.value),
        case.value[:1].expand(images, -1, -1, -1),
    ):
        check(library, replace(case, value=view))


def test_coordinates_are_not_16_bit(library):
    """A ramp over 1333 columns: 16-bit coordinates would be off by whole columns."""
    for dtype in (torch.float16, torch.bfloat16):
        width = 1333
        columns = torch.arange(width) % 2
        value = columns[None, :, None, None].expand(1, width, 1, 8).to(dtype).contiguous()
        pixels = 1300.25 + torch.arange(8)
        anchors = ((pixels + 0.5) / width).view(1, 8, 1, 1)
        anchors = torch.cat([anchors, torch.full_like(anchors, 0.5)], -1)
        offsets = torch.zeros(1, 8, 1, 1, 2, dtype=dtype)
        logits = torch.zeros(1, 8, 1, 1, dtype=dtype)
        case = Case(torch.tensor([[1, width]]), [1], value, offsets, logits, anchors)
        expected = torch.tensor([0.25, 0.75]).repeat(4)[:, None].expand(8, 8)
        torch.testing.assert_close(run(library, case)[0].float(), expected, atol=4e-3, rtol=0)


@pytest.mark.parametrize("references", [0, 4])
def test_gradients_on_demand(library, references):
    case = make_case(channels=32, references=references)
    everything = run(library, case, gradient_like(case))
    for name in everything:
        for needs in ((name,), tuple(everything.keys() - {name})):
            got = run(library, case, gradient_like(case), needs=needs)
            assert got.keys() == set(needs)
            for each in needs:
                torch.testing.assert_close(got[each], everything[each], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("references", [0, 4])
def test_deterministic(library, dtype, references):
    """Many samples on few positions, so that the order of additions matters."""
    case = make_case(((2, 2),), (9,), 1, 40, 2, 32, references=references, dtype=dtype)
    grads = [
        run(library, case, gradient_like(case), deterministic=True, seed=seed) for seed in range(4)
    ]
    for other in grads[1:]:
        for name, grad in grads[0].items():
            assert torch.equal(grad, other[name]), name
    if dtype == torch.float32:
        atomics = [run(library, case, gradient_like(case), seed=seed)["value"] for seed in (0, 1)]
        assert not torch.equal(*atomics)
        torch.testing.assert_close(atomics[0], grads[0]["value"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("references", [0, 2])
def test_deterministic_does_not_hide_what_is_not_finite(library, poison, references):
    case = make_case(((4, 4),), (3,), channels=32, references=references)
    for name in ("grad_output", "weights"):
        grad_output, weights = gradient_like(case), case.weights.clone()
        case.inputs.zero_() if references else case.inputs.fill_(0.4)
        (grad_output if name == "grad_output" else weights)[0, 0, 0] = poison
        got = run(library, replace(case, weights=weights), grad_output, deterministic=True)
        assert not got["value"].isfinite().all(), name
    grad_output = torch.zeros_like(gradient_like(case))
    got = run(library, case, grad_output, deterministic=True)
    assert torch.equal(got["value"], torch.zeros_like(got["value"]))


def test_order_of_threads_does_not_matter(library):
    """A barrier too few would show."""
    for references in (0, 2):
        case = make_case(points=(9, 9, 20), channels=32, references=references)
        for many in (False, True):
            outputs = [run(library, case, many=many, seed=seed) for seed in range(3)]
            assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
        grads = [run(library, case, gradient_like(case), seed=seed) for seed in range(3)]
        for name in grads[0]:
            torch.testing.assert_close(grads[0][name], grads[1][name], rtol=0, atol=1e-5)
            torch.testing.assert_close(grads[0][name], grads[2][name], rtol=0, atol=1e-5)


def test_wrong_sizes_on_the_device_are_noticed(library):
    case = make_case()
    large = 2**32  # the product of two is 0 in 64 bits, and so is each in 32 bits
    for shapes in (
        ((5, 7), (3, 4), (2, 1)),
        ((5, 7), (3, 3), (1, 1)),
        ((-5, -7), (3, 4), (1, 1)),
        ((large, large), (4, 12), (0, 0)),
    ):
        with pytest.raises(RuntimeError, match="positions|height"):
            run(library, replace(case, shapes=torch.tensor(shapes)), on_device=True)


def test_empty_level(library):
    case = make_case(((3, 4), (2, 2)), (2, 2), channels=32)
    padded = replace(
        case,
        shapes=torch.tensor([[3, 4], [0, 5], [5, 0], [2, 2]]),
        points=[2, 1, 1, 2],
        inputs=torch.cat([case.inputs, torch.zeros_like(case.inputs[..., :2, :])], 3)[
            ..., [0, 1, 4, 5, 2, 3], :
        ].contiguous(),
        weights=case.weights[..., [0, 1, 0, 0, 2, 3]].contiguous(),
    )
    for on_device in (False, True):
        torch.testing.assert_close(run(library, padded, on_device=on_device), run(library, case))
    grads = run(library, padded, gradient_like(case))
    assert torch.equal(grads["inputs"][..., 2:4, :], torch.zeros_like(grads["inputs"][..., 2:4, :]))
