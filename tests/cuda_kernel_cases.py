"""Inputs of the CUDA kernels, how tests/cuda_emulation runs them, and what they must give."""

import ctypes
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Call(ctypes.Structure):
    """As in driver.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in "images positions queries heads channels".split()),
        *((name, ctypes.c_int64) for name in "samples levels".split()),
        *((name, ctypes.c_int64) for name in "image_stride row_stride head_stride".split()),
        *((name, ctypes.c_void_p) for name in "shapes points value references".split()),
        *((name, ctypes.c_void_p) for name in "inputs weights grad_output output".split()),
        *((name, ctypes.c_void_p) for name in "grad_value grad_inputs grad_weights".split()),
        ("grad_references", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "fused reference_size shapes_on_device".split()),
        *((name, ctypes.c_int64) for name in "deterministic multiprocessors seed".split()),
        *((name, ctypes.c_int64) for name in "type input_type".split()),
    ]


@dataclass
class Case:
    """Inputs of the operator: locations and weights, or with references offsets and logits."""

    shapes: Tensor  # (L, 2), (H, W)
    points: list[int]  # P of each level; K is their sum.
    value: Tensor  # (N, S, M, D)
    inputs: Tensor  # (N, Q, M, K, 2)
    weights: Tensor  # (N, Q, M, K)
    references: Tensor | None = None  # (N, Q, L, 2 or 4)

    def tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def double(self) -> "Case":
        copies = {name: tensor.double().clone() for name, tensor in self.tensors().items()}
        return replace(self, **copies)


def make_case(
    shapes=((5, 7), (3, 4), (1, 1)),
    points=(2, 3, 1),
    images=2,
    queries=5,
    heads=2,
    channels=8,
    references=0,
    dtype=torch.float32,
    input_dtype=None,
    seed=0,
) -> Case:
    """Samples in and around the map, at least 1e-3 px away from where gradients jump."""
    generator = torch.Generator().manual_seed(seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shapes, points = torch.tensor(shapes), list(points)
    sizes = shapes.flip(1).repeat_interleave(torch.tensor(points), 0).double()  # (K, 2), (W, H)
    total = int(shapes.prod(1).sum())
    value = torch.randn(images, total, heads, channels, generator=generator)
    leading = (images, queries, heads, sum(points))
    weights = torch.randn(leading, generator=generator)
    pixels = torch.rand(*leading, 2, generator=generator).double() * (sizes + 2) - 1.5
    pixels = pixels.floor() + 0.05 + 0.9 * (pixels - pixels.floor())
    if references == 0:
        inputs, weights, anchors = (pixels + 0.5) / sizes, weights.softmax(-1), None
        return Case(
            shapes, points, value.to(dtype), inputs.to(compute), weights.to(compute), anchors
        )
    input_dtype = dtype if input_dtype is None else input_dtype
    anchors = torch.rand(images, queries, len(points), references, generator=generator) + 0.1
    # References with few bits, so that the offsets that 16-bit inputs round stay near the pixels.
    anchors = (anchors * 16).round() / 16
    levels = torch.arange(len(points)).repeat_interleave(torch.tensor(points))
    each = anchors.double()[:, :, None, levels]  # (N, Q, 1, K, 2 or 4)
    inputs = pixels + 0.5 - each[..., :2] * sizes
    if references == 4:
        count = torch.tensor(points)[levels, None]
        inputs = inputs / (each[..., 2:] * (0.5 / count) * sizes)
    return Case(
        shapes,
        points,
        value.to(dtype),
        inputs.to(input_dtype),
        weights.to(input_dtype),
        anchors.to(compute),
    )


def run(
    library,
    case: Case,
    grad_output: Tensor | None = None,
    needs: tuple[str, ...] = ("value", "inputs", "weights", "references"),
    deterministic: bool = False,
    many: bool = True,
    on_device: bool = False,
    seed: int = 0,
) -> Tensor | dict[str, Tensor]:
    """
    The output, or with `grad_output` the gradients.

    Args:
        many: True: the kernels for many pairs, False: those for few.
        on_device: Whether the kernels read the sizes of the levels from memory.
        seed: Of the order of blocks and threads; 0 is increasing.
    """
    value, shapes = case.value, case.shapes.contiguous()
    points = torch.tensor(case.points)
    images, positions, heads, channels = value.shape
    queries = case.inputs.shape[1]
    kept = [case.inputs.contiguous(), case.weights.contiguous(), shapes, points]
    call = Call(images, positions, queries, heads, channels, sum(case.points), len(case.points))
    call.image_stride, call.row_stride, call.head_stride = value.stride()[:3]
    call.shapes, call.points, call.value = shapes.data_ptr(), points.data_ptr(), value.data_ptr()
    call.inputs, call.weights = kept[0].data_ptr(), kept[1].data_ptr()
    call.fused = case.references is not None
    if case.references is not None:
        call.references, call.reference_size = case.references.data_ptr(), case.references.shape[3]
    call.shapes_on_device, call.deterministic = on_device, deterministic
    call.multiprocessors, call.seed = 0 if many else 1 << 20, seed
    call.type, call.input_type = TYPES.index(value.dtype), TYPES.index(case.inputs.dtype)
    result = {}
    if grad_output is None:
        # NaN, so that what is not written shows.
        output = torch.full((images, queries, heads * channels), torch.nan, dtype=value.dtype)
        call.output = output.data_ptr()
    else:
        call.grad_output = grad_output.data_ptr()
        for name, tensor in case.tensors().items():
            if name in needs:
                result[name] = torch.full(tensor.shape, torch.nan, dtype=tensor.dtype)
                setattr(call, f"grad_{name}", result[name].data_ptr())
        if "value" in result:
            result["value"].zero_()
    failure = library.ms_deform_attn_emulated(ctypes.byref(call))
    if failure is not None:
        raise RuntimeError(failure.decode())
    return output if grad_output is None else result


def reference(case: Case) -> Tensor:
    """The operator in float64 and plain PyTorch."""
    case = case.double()
    weights = case.weights if case.references is None else case.weights.softmax(-1)
    images, _, heads, channels = case.value.shape
    output = 0
    areas = case.shapes.prod(1).tolist()
    levels = zip(
        case.shapes.tolist(),
        case.value.split(areas, 1),
        case.inputs.split(case.points, 3),
        weights.split(case.points, 3),
    )
    for level, ((height, width), maps, inputs, weight) in enumerate(levels):
        if inputs.shape[3] == 0:
            continue
        size = torch.tensor([width, height])
        if case.references is None:
            locations = inputs
        else:
            anchor = case.references[:, :, None, level, None]  # (N, Q, 1, 1, 2 or 4)
            scale = anchor[..., 2:] * (0.5 / inputs.shape[3]) if anchor.shape[-1] == 4 else None
            locations = anchor[..., :2] + (inputs / size if scale is None else inputs * scale)
        pixels = locations * size - 0.5
        inside = ((pixels > -1) & (pixels < size)).all(-1)  # Also False for what is not finite.
        locations = torch.where(inside[..., None], locations, 0.5)
        sampled = F.grid_sample(
            maps.permute(0, 2, 3, 1).reshape(images * heads, channels, height, width),
            (2 * locations - 1).transpose(1, 2).flatten(0, 1),
            align_corners=False,
        )  # (N * M, D, Q, P)
        inside, weight = (each.transpose(1, 2).flatten(0, 1)[:, None] for each in (inside, weight))
        output = output + (torch.where(inside, sampled, 0) * weight).sum(3)
    return output.unflatten(0, (images, heads)).permute(0, 3, 1, 2).flatten(2)


def reference_gradients(case: Case, grad_output: Tensor) -> dict[str, Tensor]:
    case = case.double()
    for tensor in case.tensors().values():
        tensor.requires_grad_()
    reference(case).backward(grad_output.double())
    return {name: tensor.grad for name, tensor in case.tensors().items()}


def gradient_like(case: Case, seed: int = 1) -> Tensor:
    images, _, heads, channels = case.value.shape
    generator = torch.Generator().manual_seed(seed)
    shape = (images, case.inputs.shape[1], heads * channels)
    return torch.randn(shape, generator=generator).to(case.value.dtype)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Relative to the largest number: small ones are differences of large ones."""
    scale = max(1.0, float(expected.abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def check(library, case: Case, **options) -> None:
    """Forward with both kernels, and backward, against float64."""
    dtype = case.value.dtype
    few, many = (run(library, case, many=many, **options) for many in (False, True))
    assert_close(few, reference(case), dtype)
    assert_close(many, reference(case), dtype)
    grad_output = gradient_like(case)
    expected = reference_gradients(case, grad_output)
    for deterministic in (False, True):
        got = run(library, case, grad_output, deterministic=deterministic, **options)
        assert got.keys() == expected.keys()
        for name in got:
            worst = max(dtype, got[name].dtype, key=TOLERANCE.get)
            assert_close(got[name], expected[name], worst)
