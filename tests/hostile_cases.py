"""Wrong calls of the operators: a table with the words of each refusal, and random ones."""

import os
import random
import resource
import sys

import torch
from torch.testing import assert_close

from .op_cases import LAYOUTS, NAMES, OPS, coordinate_dtype, make_problem, random_problem, using

HUGE = 2**32  # the product of two is 2**64, which is 0 in 64 bits


def arguments(name, problem):
    """What the operator of this name takes, by the names of its schema."""
    value, *rest = problem.tensors
    args = {"value": value}
    if problem.fused:
        args["level_shapes"] = [size for pair in problem.sizes for size in pair]
        args["level_points"] = list(problem.level_points)
        names = ("reference_points", "sampling_offsets", "attention_logits")
    else:
        args["spatial_shapes"] = torch.tensor(problem.sizes, dtype=torch.int64).view(-1, 2)
        names = ("sampling_locations", "attention_weights")
    args.update(zip(names, rest))
    if "backward" in name:
        size = (value.shape[0], rest[0].shape[1], value.shape[2] * value.shape[3])
        args = {"grad_output": torch.ones(size, dtype=value.dtype), **args}
        needs = "value", *(n.rpartition("_")[2] for n in names)
        args.update({f"needs_{n}".replace("points", "locations"): True for n in needs})
        args["deterministic"] = False
    return args


def call(name, args, implementation="compiled"):
    """By position, as exported programs do."""
    if implementation == "meta":
        args = {k: x.to("meta") if isinstance(x, torch.Tensor) else x for k, x in args.items()}
    with using(implementation):
        return getattr(OPS, name)(*args.values())


def shaped(x, *axes):
    """The words about a shape."""
    return rf"{x} must be \({', '.join(axes)}\)"


#: Argument, how it changes, and what the message says. Sizes of the valid problem are 3 x 5, 2 x 7
#: and 1 x 1, so S = 30, with N = Q - 1 = M = 2, D = 3 and two points of each level.
VALUE = [
    ("value", lambda x: x[0, 0, 0, 0], shaped("value", "N", "S", "M", "D") + r".*shape \(\)"),
    ("value", lambda x: x[0], r"value must be .*shape \(30, 2, 3\)"),
    ("value", lambda x: x[None], r"value must be .*shape \(1, 2, 30, 2, 3\)"),
    ("value", lambda x: x.long(), "value must be float of 16, 32 or 64 bits, got"),
    ("value", lambda x: x.bool(), "value must be float of 16, 32 or 64 bits, got"),
    ("value", lambda x: x.cfloat(), "value must be float of 16, 32 or 64 bits, got"),
    ("value", lambda x: x[:, :29], "spatial_shapes cover 30 positions.* value has 29"),
    ("value", lambda x: x[:, :0], "spatial_shapes cover .* value has 0"),
    ("value", lambda x: x.float(), "the dtype of .* must be .*loat"),
    ("value", lambda x: None, "value must be a tensor, got None"),
    ("value", lambda x: x.to_sparse(), "value must be dense"),
]
PLAIN = [
    ("spatial_shapes", lambda x: x[:, :0], r"spatial_shapes must be \(L, 2\).*\(3, 0\)"),
    ("spatial_shapes", lambda x: x[:, :1], r"spatial_shapes must be \(L, 2\).*\(3, 1\)"),
    ("spatial_shapes", lambda x: x.flatten(), r"spatial_shapes must be \(L, 2\).*\(6,\)"),
    ("spatial_shapes", lambda x: x[0, 0], r"spatial_shapes must be \(L, 2\).*\(\)"),
    ("spatial_shapes", lambda x: x[:0], r"spatial_shapes"),
    ("spatial_shapes", lambda x: x[:2], r"spatial_shapes"),
    ("spatial_shapes", lambda x: x.int(), "dtype of spatial_shapes must be .*(Long|int64), got"),
    ("spatial_shapes", lambda x: x.double(), "spatial_shapes must be"),
    ("spatial_shapes", lambda x: x.cfloat(), "spatial_shapes must be"),
    ("spatial_shapes", lambda x: None, "spatial_shapes must be a tensor, got None"),
    ("sampling_locations", lambda x: x[0, 0, 0, 0, 0, 0], r"sampling_locations must be .*\(\)"),
    (
        "sampling_locations",
        lambda x: x.flatten(3, 4),
        r"sampling_locations must be \(N, Q, M, L, P",
    ),
    ("sampling_locations", lambda x: x[..., :1], r"sampling_locations must be \(N, Q, M, L, P, 2"),
    ("sampling_locations", lambda x: x[:1], "sampling_locations|attention_weights"),
    ("sampling_locations", lambda x: x[:, :2], "attention_weights must be"),
    ("sampling_locations", lambda x: x[:, :, :, :, :0], "attention_weights must be"),
    ("sampling_locations", lambda x: x.cdouble(), "sampling_locations must be"),
    ("sampling_locations", lambda x: x.long(), "sampling_locations must be"),
    ("sampling_locations", lambda x: x.half(), "dtype of sampling_locations must be"),
    ("attention_weights", lambda x: x[0, 0, 0, 0, 0], "attention_weights must be"),
    ("attention_weights", lambda x: x[..., :0], "attention_weights must be"),
    ("attention_weights", lambda x: x[..., None], "attention_weights must be"),
    ("attention_weights", lambda x: x.float(), "dtype of attention_weights must be"),
    ("attention_weights", lambda x: x.int(), "attention_weights must be"),
    ("attention_weights", lambda x: None, "attention_weights must be a tensor, got None"),
]
FUSED = [
    ("level_shapes", lambda x: [], "level_shapes must be height and width of each of 3 levels"),
    ("level_shapes", lambda x: x[:5], "level_shapes must be .* of 3 levels, got 5 numbers"),
    ("level_shapes", lambda x: [*x, 0, 0], "level_shapes must be .*3 levels, got 8 numbers"),
    ("level_shapes", lambda x: [-3, -5, *x[2:]], r"must not be negative, got \(-3, -5\)"),
    ("level_shapes", lambda x: [HUGE, HUGE, *x[2:]], "spatial_shapes .*(cover|larger)"),
    ("level_shapes", lambda x: [2**63 - 1, 2, *x[2:]], "spatial_shapes .*(cover|larger)"),
    ("level_shapes", lambda x: [3, 6, *x[2:]], "spatial_shapes cover 33 positions.* has 30"),
    ("level_points", lambda x: [], "level_shapes must be height and width of each of 0 levels"),
    ("level_points", lambda x: [2, 2], "level_shapes must be .* 2 levels, got 6 numbers"),
    ("level_points", lambda x: [2, -2, 6], "points.* at least 1.*-2"),
    ("level_points", lambda x: [3, 0, 3], "points.* at least 1.*0"),
    ("level_points", lambda x: [2, 2, 2**40], r"at most|\(N, Q, M, K\)"),
    ("level_points", lambda x: [2**62, 2**62, 2**63 - 1], r"at most|\(N, Q, M, K\)"),
    ("level_points", lambda x: [2, 2, 3], r"\(2, 3, 2, 7"),
    ("reference_points", lambda x: x[0, 0, 0, 0], r"reference_points must be .*\(\)"),
    ("reference_points", lambda x: x[0], "reference_points must be"),
    ("reference_points", lambda x: x[..., :1], "reference_points must be .*2.* 4"),
    ("reference_points", lambda x: x[..., :0], "reference_points must be .*2.* 4"),
    ("reference_points", lambda x: x[:, :, :2], "reference_points"),
    ("reference_points", lambda x: x[:1], "reference_points"),
    ("reference_points", lambda x: x.half(), "dtype of reference_points must be"),
    ("reference_points", lambda x: x.cdouble(), "reference_points must be"),
    ("reference_points", lambda x: None, "reference_points must be a tensor, got None"),
    ("sampling_offsets", lambda x: x[0, 0, 0, 0, 0], "sampling_offsets"),
    ("sampling_offsets", lambda x: x[..., :1], "sampling_offsets"),
    ("sampling_offsets", lambda x: x[:, :, :, :0], "sampling_offsets"),
    ("sampling_offsets", lambda x: x.unflatten(3, (3, 2)), "sampling_offsets"),
    ("sampling_offsets", lambda x: x.float(), "sampling_offsets must be"),
    ("sampling_offsets", lambda x: x.long(), "sampling_offsets must be"),
    ("attention_logits", lambda x: x[0, 0, 0, 0], "attention_logits"),
    ("attention_logits", lambda x: x[:, :2], "attention_logits must be"),
    ("attention_logits", lambda x: x.half(), "dtype of attention_logits must be"),
    ("attention_logits", lambda x: x.to_sparse(), "attention_logits must be dense"),
]
GRAD_OUTPUT = [
    ("grad_output", lambda x: x[0, 0, 0], r"grad_output must be \(N, Q, M \* D\)"),
    ("grad_output", lambda x: x[0], r"grad_output must be \(N, Q, M \* D\)"),
    ("grad_output", lambda x: x.flatten(), r"grad_output must be \(N, Q, M \* D\).*\(36,\)"),
    ("grad_output", lambda x: x.unflatten(2, (2, 3)), r"grad_output must be .*\(2, 3, 2, 3\)"),
    ("grad_output", lambda x: x.mT, r"grad_output must be .*\(2, 3, 6\).*\(2, 6, 3\)"),
    ("grad_output", lambda x: x[:, :, :0], r"grad_output must be .*\(2, 3, 6\).*\(2, 3, 0\)"),
    ("grad_output", lambda x: x.float(), "dtype of grad_output must be"),
    ("grad_output", lambda x: x.long(), "grad_output must be"),
    ("grad_output", lambda x: x.cdouble(), "grad_output must be"),
    ("grad_output", lambda x: x.to_sparse(), "grad_output must be dense"),
    ("grad_output", lambda x: None, "grad_output must be a tensor, got None"),
]
CASES = [
    *((name, *case) for name in NAMES for case in VALUE),
    *((name, *case) for name in NAMES[:2] for case in PLAIN),
    *((name, *case) for name in NAMES[2:] for case in FUSED),
    *((name, *case) for name in NAMES if "backward" in name for case in GRAD_OUTPUT),
]


# Fuzz. Call i of a seed depends on both and on nothing else.

MEMORY = 4 * 2**30  # bytes of a process
NUMBERS = [-(2**63), -(2**31), -1, 0, 1, 2, 7, 2**31 - 1, 2**31, HUGE, 2**62, 2**63 - 1]
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool,
    torch.uint8, torch.int32, torch.int64, torch.complex64, torch.complex128, torch.uint16,
]  # fmt: skip


def _axis(rng, x):
    return rng.randrange(x.dim())


def _strided(rng, x):
    """Strides of axes of size one may be anything."""
    strides = [
        s if n > 1 else rng.choice([0, 1, 2**40, 2**60]) for n, s in zip(x.shape, x.stride())
    ]
    return x.as_strided(x.shape, strides)


def _freed(rng, x):
    x = x.clone()
    x.untyped_storage().resize_(rng.choice([0, 8]))
    return x


def _numbers(rng, x):
    x = x.clone()
    if x.numel():
        number = (
            rng.choice(NUMBERS)
            if x.dtype == torch.int64
            else rng.choice([float("nan"), float("inf"), -1e30, 1e30, -0.0])
        )
        x.view(-1)[rng.randrange(x.numel())] = number
    return x


#: Ways in which a tensor that has an axis goes wrong, or may do so and stay right.
TENSORS = [
    lambda rng, x: x.select(_axis(rng, x), 0),
    lambda rng, x: x.unsqueeze(rng.randrange(x.dim() + 1)),
    lambda rng, x: x.flatten(),
    lambda rng, x: x.flatten()[0],
    lambda rng, x: x.narrow(_axis(rng, x), 0, rng.choice([0, 1])),
    lambda rng, x: x.transpose(_axis(rng, x), _axis(rng, x)),
    lambda rng, x: torch.cat([x, x], _axis(rng, x)),
    lambda rng, x: x[:1].expand(rng.choice([0, 2, 2**31, 2**40]), *x.shape[1:]),
    lambda rng, x: x.narrow(axis := _axis(rng, x), 0, 1).transpose(0, axis).expand(
        rng.choice([2, 2**31, 2**40]), *x.narrow(axis, 0, 1).transpose(0, axis).shape[1:]
    ).transpose(0, axis),
    lambda rng, x: x.to(rng.choice(DTYPES)),
    lambda rng, x: x.to("meta"),
    lambda rng, x: x.to_sparse(),
    lambda rng, x: None,
    lambda rng, x: torch.zeros(rng.choices([0, 1, 2, 3, 2**20], k=rng.randrange(7)) + [0]),
    lambda rng, x: LAYOUTS[rng.choice(list(LAYOUTS))](x),
    lambda rng, x: torch._neg_view(x) if x.is_floating_point() else -x,
    lambda rng, x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    lambda rng, x: x.detach().requires_grad_(x.is_floating_point()),
    _strided,
    _freed,
    _numbers,
    _numbers,
]  # fmt: skip
LISTS = [
    lambda rng, x: [],
    lambda rng, x: x[:-1],
    lambda rng, x: x[::-1],
    lambda rng, x: x + [rng.choice(NUMBERS)],
    lambda rng, x: [rng.choice([n, rng.choice(NUMBERS)]) for n in x],
    lambda rng, x: [rng.choice([n, rng.choice(NUMBERS)]) for n in x],
    lambda rng, x: [rng.choice([n, -n]) for n in x],
]


def empty_problem(rng, fused):
    """One that is right, without numbers to compute, and with sizes that are anything."""
    while True:
        sizes = [0, 0, 1, 2, 3, 2**20, 2**40, 2**62]
        images, queries, heads, dim = rng.choices(sizes, k=4)
        points, levels = rng.choice([0, 1, 2, 2**20]), rng.choice([0, 1, 3])
        shapes = [
            (rng.choice([0, 1, 2]), rng.choice([0, 0, 3, 2**31 - 1024])) for _ in range(levels)
        ]
        amounts = [
            (images, sum(h * w for h, w in shapes), heads, dim),
            (images, queries, heads, dim),
            (images, queries, heads, levels, points, 2),
            (images, queries, levels, 2),
        ]
        if fused and points == 0 and levels or max(map(_product, amounts)) > 10**4:
            continue
        problem = make_problem(fused, dtype=rng.choice([torch.float64, torch.float32]))
        dtype = problem.tensors[0].dtype
        points_shape = (images, queries, heads, levels, points)
        if fused:
            points_shape = (images, queries, heads, levels * points)
        try:
            tensors = [
                torch.zeros(s, dtype=dtype) for s in (amounts[0], (*points_shape, 2), points_shape)
            ]
            tensors[1:1] = [torch.zeros(amounts[3], dtype=dtype)] if fused else []
        except RuntimeError:  # torch has no tensor of these sizes
            continue
        problem.sizes, problem.level_points, problem.tensors = shapes, [points] * levels, tensors
        return problem


def _product(sizes):
    result = 1
    for size in sizes:
        result *= size
    return result


def hostile_call(seed, number, implementation):
    """One call of one operator; whether it returned."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(NAMES)
    fused, empty = "fused" in name, rng.random() < 0.2
    problem = (empty_problem if empty else random_problem)(rng, fused)
    if not fused:
        dtype = coordinate_dtype(problem.tensors[0].dtype)
        problem.tensors[1:] = [x.to(dtype) for x in problem.tensors[1:]]
    try:
        args = arguments(name, problem)
    except RuntimeError:  # torch has no output of these sizes: forward, then
        name = name.replace("_backward", "")
        args = arguments(name, problem)
    if "backward" in name:
        needs = [k for k in args if k.startswith("needs")]
        args.update({k: rng.random() < 0.7 for k in needs})
    mutations = rng.choice([0, 1, 1, 1, 2, 3])
    finished = set()  # what torch must not compute with: too large, or without its memory
    for _ in range(mutations):
        keys = [k for k in args if isinstance(args[k], (torch.Tensor, list)) and k not in finished]
        key = rng.choice(keys)
        change = rng.choice(LISTS if isinstance(args[key], list) else TENSORS)
        try:
            args[key] = change(rng, args[key])
        except (RuntimeError, IndexError, TypeError, ValueError):
            continue  # torch does not do this to such a tensor
        if change is _freed or isinstance(args[key], torch.Tensor) and args[key].numel() > 10**6:
            finished.add(key)
    try:
        result = call(name, args, implementation)
    except (RuntimeError, ValueError, TypeError):
        if not mutations and not empty:
            raise
        return False
    if not mutations and not empty and "backward" not in name:
        exact = [x.double() for x in problem.tensors]
        dtype = problem.tensors[0].dtype
        eps = torch.finfo(dtype).eps + 1e3 * torch.finfo(coordinate_dtype(dtype)).eps
        assert_close(result.double(), problem.expected(*exact), rtol=eps, atol=eps)
    return True


def fuzz(seed, calls, implementation):
    """Says before each call which it is: the last one that is named ended the process."""
    # A copy of what was expanded to 2**31 is refused as one to 2**40 is, where there is memory for
    # it, too: the system would end the process. Sanitizers reserve more, and have a limit.
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(2)
    returned = 0
    for number in range(calls):
        sys.stdout.write(f"\n{number} ")
        sys.stdout.flush()
        returned += hostile_call(seed, number, implementation)
    sys.stdout.write(f"\n{returned} of {calls} returned")
