#!/usr/bin/env python
"""
Time, memory and share of the roofline of the operator, beside other implementations of it.

    python tools/benchmark_op.py --list                                 # shapes; measures nothing
    OMP_PROC_BIND=true python tools/benchmark_op.py --shape a1 b300 c   # on a CPU
    python tools/benchmark_op.py --shape a b900 d --device cuda --dtype float32 bfloat16
    python tools/benchmark_op.py --levels 64x64 32x32 --queries 100 --batch-size 4
    python tools/benchmark_op.py --scaling --other grid_sample          # over the size of images

"ours" are the two entries of the operator: the drop-in one, which reads locations and weights, and
the fused one, which reads what the projections of the query give. Beside the fused one, the others
do its softmax and its offsets / size + reference before. The others:

* grid_sample: the way of the official pure PyTorch function, one `grid_sample` per level.
* fallback: our PyTorch form, which computes where no kernel is compiled.
* torch-ms-deform-attn: the package of that name, where it is installed. It is compiled on
  installation: pip install --no-build-isolation torch-ms-deform-attn
* official-cuda: the CUDA operator of the authors, where its module MultiScaleDeformableAttention
  can be imported; only on a GPU.

The others always compute in float32; `--dtype` is that of our values (and, fused, of offsets and
logits). Results and gradients of all are compared before anything is timed. Then ours and one other
take turns (A B A B ...), and the ratio is the median of the ratios of neighbours. In a turn a side
is called once without the clock, so that it finds its own data in the caches, and then over and
over for `--turn` seconds; with `--cold`, once after the caches were overwritten. The backward pass
is that of autograd, with new gradients of all inputs but the references.

Encoder: each cell of each level is a query and looks around itself. Decoder: queries look around
random points. Offsets are those of a new model, with noise of one cell; everything is seeded.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import itertools
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from benchmark import CLOCKS, machine, peak_extra_mib  # tools/benchmark.py
from operator_implementations import OTHERS, after_elementwise, our_drop_in, our_fused, why_not
from operator_problems import LONG_SIDES, SHAPES, Problem, Shape, make_problem, pyramid
from torch import Tensor

from detectron2_ddetr.collect_env import describe_environment
from detectron2_ddetr.measuring import power
from detectron2_ddetr.modeling.ops.extension import describe_backend

ENTRIES = ("drop-in", "fused")
PASSES = ("forward", "forward+backward")
NEEDS_GRAD = {"drop-in": (True, True, True), "fused": (True, False, True, True)}
DTYPES = ("float32", "bfloat16", "float16")


def one_call(
    function: Callable[..., Tensor], problem: Problem, entry: str, what: str, as_float32: bool
) -> Callable[[], list[Tensor]]:
    """A call that returns the output and, after a backward pass, the gradients."""
    value, *rest = problem.inputs[entry]
    grad_output = problem.grad_output
    if as_float32:
        value, grad_output, *rest = (x.float() for x in (value, grad_output, *rest))

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [function(value, problem.levels, *rest)]

    if what == "forward":
        return forward
    needs = NEEDS_GRAD[entry]
    value, *rest = (x.detach().requires_grad_(need) for x, need in zip((value, *rest), needs))
    wanted = [x for x in (value, *rest) if x.requires_grad]

    def forward_and_backward() -> list[Tensor]:
        output = function(value, problem.levels, *rest)
        return [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]

    return forward_and_backward


def check_agreement(name: str, results: list[Tensor], ours: list[Tensor]) -> None:
    """
    By the norm of the difference: where a location is near the centre of a cell its gradient jumps,
    and rounding alone makes a few elements differ altogether.
    """
    for index, (their, our) in enumerate(zip(results, ours, strict=True)):
        error = ((their.double() - our.double()).norm() / their.double().norm()).item()
        tolerance = 2e-2 if index or our.dtype.itemsize == 2 else 1e-4
        if not error <= tolerance:  # neither is NaN
            what = f"gradient {index}" if index else "output"
            raise SystemExit(
                f"{name}: does not agree with ours, nothing more is timed: {what}, relative error "
                f"{error:.1e}, allowed {tolerance:.0e}"
            )


class Clock:
    """Times calls on a device, and knows how fast that device is."""

    def __init__(self, device: torch.device, now: str, repeat: int, turn: float, cold: bool):
        self.device, self.repeat, self.turn = device, repeat, turn
        self.now = CLOCKS[now]
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        size = 2**30 if device.type == "cuda" else 2**28  # bytes: far beyond any cache
        side = 4096 if device.type == "cuda" else 1024
        source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        matrix = torch.ones(side, side, device=device)
        #: Bytes per second of a large copy, read and written; multiply-adds times two per second.
        self.bandwidth = 2 * size / self._fastest(lambda: target.copy_(source))
        self.flops = 2 * side**3 / self._fastest(lambda: matrix @ matrix)
        self.flush = (lambda: target.copy_(source)) if cold else None

    def seconds(self, run: Callable[[], object], calls: int = 1) -> float:
        """Of one call, the mean of several in a row."""
        self.wait()
        start = self.now()
        for _ in range(calls):
            run()
        self.wait()
        return (self.now() - start) / calls

    def _fastest(self, run: Callable[[], object]) -> float:
        return min(self.seconds(run) for _ in range(10))

    def take_turns(self, sides: Sequence[Callable[[], object]]) -> list[list[float]]:
        """Seconds of a call, in each turn of each side."""
        calls = []
        for run in sides:
            run()  # the first call is another one: threads start, memory is new
            single = self.seconds(run)
            calls.append(1 if self.flush else max(1, round(self.turn / single)))
        seconds: list[list[float]] = [[] for _ in sides]
        for _ in range(self.repeat):
            for run, count, taken in zip(sides, calls, seconds):
                (self.flush or run)()
                taken.append(self.seconds(run, count))
        return seconds


def digits(number: float) -> str:
    """Three of them, or all before the point."""
    places = 0 if number <= 0 else max(0, 2 - math.floor(math.log10(number)))
    return f"{number:.{places}f}"


def spread(numbers: Sequence[float]) -> str:
    """Median [least, most]."""
    return f"{digits(statistics.median(numbers))} [{digits(min(numbers))}, {digits(max(numbers))}]"


HEADING = (
    "| shape | entry | pass | dtype | other | ours, ms | other, ms | other / ours | ours, MiB "
    "| other, MiB | MB | GFLOP | roof, ms | roof / ours |"
)


def compare(
    shape: Shape, dtype: str, others: list[str], entries: list[str], passes: list[str], clock: Clock
) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Prints a row for each entry, pass and other; returns the median seconds, (ours, other)."""
    problem = make_problem(shape, getattr(torch, dtype), clock.device)
    pairs = {}
    for entry, what, other in itertools.product(entries, passes, others):
        core = OTHERS[other]
        theirs = core if entry == "drop-in" else after_elementwise(core)
        ours = our_drop_in if entry == "drop-in" else our_fused
        pairs[entry, what, other] = (
            one_call(ours, problem, entry, what, as_float32=False),
            one_call(theirs, problem, entry, what, as_float32=True),
        )
    for key, (ours, theirs) in pairs.items():
        name = ", ".join((shape.name, dtype, *key))
        print(f"checking {name}", file=sys.stderr)
        check_agreement(name, theirs(), ours())

    medians = {}
    for (entry, what, other), sides in pairs.items():
        print(f"timing {', '.join((shape.name, dtype, entry, what, other))}", file=sys.stderr)
        seconds = clock.take_turns(sides)
        medians[entry, what, other] = tuple(map(statistics.median, seconds))
        peaks = [peak_extra_mib(run, clock.device) for run in sides]
        megabytes = shape.megabytes(entry, what, getattr(torch, dtype).itemsize)
        gflop = shape.gflop(what)
        roof = max(megabytes * 1e6 / clock.bandwidth, gflop * 1e9 / clock.flops)
        cells = [
            *(str(shape), entry, what, dtype, other),
            *(spread([1000 * x for x in taken]) for taken in seconds),
            spread([b / a for a, b in zip(*seconds)]),
            *("" if peak is None else digits(peak) for peak in peaks),
            *(digits(megabytes), digits(gflop), digits(1000 * roof)),
            f"{100 * roof / statistics.median(seconds[0]):.0f} %",
        ]
        print("|", " | ".join(cells), "|", flush=True)
    return medians


def list_shapes(shapes: list[Shape]) -> None:
    print("| shape | levels | samples | GFLOP, f / b | MB, f / b, drop-in | MB, f / b, fused |")
    print("|---" * 6 + "|")
    for shape in shapes:
        pairs = [(shape.gflop(PASSES[0]), shape.gflop(PASSES[1]))]
        pairs += [[shape.megabytes(entry, what, 4) for what in PASSES] for entry in ENTRIES]
        costs = [f"{digits(forward)} / {digits(both - forward)}" for forward, both in pairs]
        levels = " ".join(f"{height}x{width}" for height, width in shape.levels)
        print("|", " | ".join([str(shape), levels, f"{shape.samples / 1e6:.3f} M", *costs]), "|")


def describe_run(args: argparse.Namespace, clock: Clock, others: list[str], load: float) -> str:
    """Everything that a row depends on, in a line."""
    device = clock.device
    kernels = dict(line.split(": ", 1) for line in describe_backend().splitlines())
    versions = [f"torch {torch.__version__}"]
    if "torch-ms-deform-attn" in others:
        name = "torch-ms-deform-attn"
        threads = importlib.import_module("torch_ms_deform_attn._C").cpu_parallel_backend
        versions.append(f"{name} {importlib.metadata.version(name)}, {threads} on CPUs")
    parts = [
        f"{args.repeat} turns" + (", cold caches" if args.cold else f" of {args.turn} s"),
        f"{args.clock} clock",
        f"load {load:.1f} before, {machine(device)}, {torch.get_num_threads()} threads",
        f"a large copy {clock.bandwidth / 1e9:.0f} GB/s",
        f"a float32 matrix product {clock.flops / 1e9:.0f} GFLOP/s",
        *versions,
        f"ours: {kernels[device.type.upper()]}",
        datetime.date.today().isoformat(),
    ]
    return ", ".join(parts)


NOTES = """\
Median [least, most]. MiB: the most memory of a call beyond its inputs. MB: each tensor of ours
once, of the values no more than samples can touch. GFLOP: multiply-adds of the sampling, times two.
Roof: the longer of MB at the speed of a large copy and GFLOP at that of a matrix product, both
measured in this run. It is no bound for what the caches do: a call that finds its data there may
be faster, and the corners read by samples, many times MB, must come from there."""


def level_size(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH")
    return height, width


def positive(kind: type) -> Callable[[str], float]:
    def parse_number(text: str) -> float:
        if not kind(text) > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return kind(text)

    parse_number.__name__ = kind.__name__  # for argparse's message about what is no number
    return parse_number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[1], epilog="More at the top of this file."
    )
    add, number = parser.add_argument, positive(int)
    add("--shape", nargs="+", choices=SHAPES, default=[], help="default: a1 b300")
    add("--levels", nargs="+", type=level_size, metavar="HxW", help="a shape of your own")
    add("--queries", type=number, help="decoder; with --levels, whose default is the encoder")
    add(
        "--scaling",
        nargs="*",
        type=number,
        metavar="LONG_SIDE",
        help=f"encoder, images of 3:5; default: {' '.join(map(str, LONG_SIDES))}",
    )
    add("--batch-size", type=number, help="default: that of the shape, see --list; otherwise 1")
    add("--other", nargs="+", choices=OTHERS, help="default: all that can be used here")
    add("--entry", nargs="+", choices=ENTRIES, default=ENTRIES)
    add("--pass", nargs="+", choices=PASSES, default=PASSES, dest="passes")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of our values")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=number, help="default: PyTorch's own choice")
    add("--repeat", type=number, default=10, help="timed turns of each side")
    add("--turn", type=positive(float), default=0.1, help="seconds of a turn")
    add("--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1: on a busy machine")
    add("--cold", action="store_true", help="one call a turn, after overwriting the caches")
    add("--markdown", action="store_true", help="print the table and its line alone")
    add("--list", action="store_true", help="print the shapes and their costs in float32")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    shapes = [SHAPES[name] for name in args.shape]
    if args.levels:
        shapes.append(Shape("custom", tuple(args.levels), args.queries))
    elif args.queries:
        raise SystemExit("--queries belongs to --levels")
    if args.scaling is not None:
        if shapes:
            raise SystemExit("--scaling makes its own shapes: leave out --shape and --levels")
        sides = [(round(0.6 * long), long) for long in args.scaling or LONG_SIDES]
        shapes = [Shape(f"{height}x{width}", pyramid(height, width)) for height, width in sides]
    shapes = shapes or list(SHAPES.values() if args.list else (SHAPES["a1"], SHAPES["b300"]))
    if args.batch_size:
        shapes = [replace(shape, batch=args.batch_size) for shape in shapes]
    if args.list:
        list_shapes(shapes)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU")

    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    reasons = {other: why_not(other, device) for other in args.other or OTHERS}
    for other, reason in reasons.items():
        if reason and args.other:
            raise SystemExit(f"--other {other}: {reason}")
        if reason:
            print(f"left out: {other} {reason}", file=sys.stderr)
    others = [other for other, reason in reasons.items() if not reason]
    load = os.getloadavg()[0]
    clock = Clock(device, args.clock, args.repeat, args.turn, args.cold)

    print(HEADING)
    print("|---" * HEADING.count(" | ") + "|---|")
    medians: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for shape, dtype in itertools.product(shapes, args.dtype):
        row = compare(shape, dtype, others, args.entry, args.passes, clock)
        for key, pair in row.items():
            medians.setdefault((dtype, *key), []).append(pair)
    if args.scaling is not None and len(sides) > 1:
        print("\nTime grows with pixels to the power of, ours / other:\n")
        pixels = [height * width for height, width in sides]
        for key, pairs in medians.items():
            ours, theirs = (power(pixels, seconds) for seconds in zip(*pairs))
            print(f"* {', '.join(key)}: {ours:.3f} / {theirs:.3f}")
    print(f"\n{describe_run(args, clock, others, load)}")
    if not args.markdown:
        print(f"\n{NOTES}\n\n{describe_environment()}")


if __name__ == "__main__":
    main()
