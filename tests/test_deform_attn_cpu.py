"""The compiled CPU kernels: any threads, processor and process, and arguments nobody checked."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling.ops import extension

from .conftest import ROOT
from .fork_server import python
from .op_cases import OPS, coordinate_dtype, make_problem, needs_kernels

entries = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


@needs_kernels
@pytest.mark.parametrize(
    ("name", "argument"),
    [("ms_deform_attn", i) for i in (2, 3)] + [("ms_deform_attn_fused", i) for i in (3, 4, 5)],
)
@pytest.mark.parametrize(
    "change",
    [lambda x: x.half(), lambda x: x[:1], lambda x: x[:, :1], lambda x: x[:, :, :1]],
    ids=["dtype", "images", "queries", "heads"],
)
def test_kernels_read_nothing_foreign(name, argument, change):
    """Called without the checks of the public functions they refuse what is too small for them."""
    problem = make_problem(name == "ms_deform_attn_fused", dtype=torch.float32)
    value, *rest = problem.tensors
    if problem.fused:
        args = [value, [size for pair in problem.sizes for size in pair], [2, 2, 2], *rest]
    else:
        args = [value, torch.tensor(problem.sizes), *rest]
    getattr(OPS, name)(*args)
    args[argument] = change(args[argument])
    with pytest.raises(RuntimeError):
        getattr(OPS, name)(*args)


@needs_kernels
def test_kernels_refuse_negative_sizes():
    """They too."""
    value, *rest = make_problem(False, [(2, 3)], dtype=torch.float32).tensors
    with pytest.raises(RuntimeError, match=r"negative.*\(-2, -3\)"):
        OPS.ms_deform_attn(value, torch.tensor([(-2, -3)]), *rest)


@needs_kernels
@entries
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_thread_counts(fused, dtype):
    """Whatever the number of threads, every bit is the same."""
    problem = make_problem(fused, [(20, 30), (7, 5)], 4, 2, 300, 4, 32, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(problem.run())
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            assert torch.equal(a, b)
    exact = problem.to(torch.float64).expected()
    assert_close(results[0][0].double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


VARIANT_SCRIPT = """
import sys, torch
from detectron2_ddetr.modeling.add_norm import add_and_norm
from detectron2_ddetr.modeling.dropout import Dropout
from detectron2_ddetr.modeling.ops.bernoulli import bernoulli
from detectron2_ddetr.modeling.ops.scale_kept import scale_kept
from tests.op_cases import OPS, make_problem
torch.manual_seed(0)
drawn = bernoulli((5001,), 0.3)
torch.manual_seed(0)
assert torch.equal(drawn, torch.empty(5001).bernoulli_(0.3).bool())
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    x = torch.randn(5001).to(dtype)
    scaled = scale_kept(x, drawn, 1.25, torch.empty_like(x))
    assert torch.equal(scaled, torch.where(drawn, x, 0) * 1.25)
for dtype in (torch.float64, torch.float32):
    dropout, norm = Dropout(0.5), torch.nn.LayerNorm(71).to(dtype)
    found = []
    for call in (add_and_norm, lambda x, update, dropout, norm: norm(x + dropout(update))):
        torch.manual_seed(0)
        x, update = (torch.randn(40, 71, dtype=dtype, requires_grad=True) for _ in range(2))
        result = call(x, update, dropout, norm)
        found.append([result, *torch.autograd.grad(result.square().sum(), [x, update])])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
results = {}
for fused in (False, True):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for dim in (5, 32, 71):
            problem = make_problem(fused, [(6, 9), (3, 2)], 3, 2, 20, 2, dim, 4, dtype)
            results[fused, dtype, dim] = problem.run()
print(OPS.cpu_kernels())
torch.save(results, sys.argv[1])
"""


@needs_kernels
def test_instruction_sets(tmp_path, monkeypatch):
    """Those that this processor has differ in the order of sums and in fused roundings alone."""
    results = {}
    for name in ("portable", "avx2", "avx512"):
        monkeypatch.setenv("DDETR_CPU_KERNELS", name)
        status, log = python("-c", VARIANT_SCRIPT, tmp_path / name, cwd=ROOT)
        if status != 0:  # this processor lacks it; none lacks the portable ones
            assert name != "portable" and "which is not among the kernels" in log, log
            continue
        assert log.split()[-1] == name
        results[name] = torch.load(tmp_path / name)
    for case, tensors in results.pop("portable").items():
        for name, others in results.items():
            for a, b in zip(tensors, others[case]):
                # A 16-bit result may fall on the other side of a rounding.
                once = torch.finfo(a.dtype).eps if a.dtype.itemsize == 2 else 0
                sums = 1e-6 if coordinate_dtype(case[1]) == torch.float32 else 1e-14
                scale = a.double().abs().max().item()
                assert_close(
                    b.double(), a.double(), rtol=once, atol=20 * sums * scale,
                    msg=lambda text: f"{name}, {case}: {text}",
                )  # fmt: skip


@needs_kernels
def test_unknown_instruction_set(monkeypatch):
    """A name that is none is an error that says the choices, not a slower run."""
    monkeypatch.setenv("DDETR_CPU_KERNELS", "sse9")
    code = "import torch, detectron2_ddetr.modeling; torch.ops.detectron2_ddetr.cpu_kernels()"
    status, log = python("-c", code, cwd=ROOT)
    assert status != 0
    for word in ("DDETR_CPU_KERNELS", "sse9", "avx512", "avx2", "portable"):
        assert word in log


@needs_kernels
def test_kernels_of_other_sources():
    """One error that says what to do, and not one of PyTorch's in the first step."""
    assert extension._load("_C", ("ms_deform_attn", "add_norm"))
    with pytest.raises(
        ImportError, match=r"_C.*older.* it has no nonsense, bernoulli_like_\. Inst"
    ):
        extension._load("_C", ("add_norm", "nonsense", "bernoulli_like_"))


WITHOUT_KERNELS_SCRIPT = """
import importlib.util, torch
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.startswith("detectron2_ddetr._C") else find_spec(name, package)
)
from detectron2_ddetr.modeling.ops import extension
assert not extension.HAS_CPU_KERNELS and not extension.HAS_CUDA_KERNELS
assert "CPU: PyTorch, because" in extension.describe_backend()
for entry in ("ms_deform_attn", "ms_deform_attn_fused"):
    name = f"detectron2_ddetr::{entry}"
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name
from tests.op_cases import check_gradients, make_problem
for fused in (False, True):
    problem = make_problem(fused, numbers=4)
    leaves = problem.leaves()
    output = problem.call(*leaves)
    output.sum().backward()
    check_gradients(problem, leaves, torch.ones_like(output), output)
print("done")
"""


def test_without_the_compiled_module():
    """Where nothing was built the same calls give the same results, and it is said why."""
    # Of a process that has not loaded it yet.
    command = [sys.executable, "-c", WITHOUT_KERNELS_SCRIPT]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.split()[-1] == "done", run.stderr


class Outputs(torch.utils.data.Dataset):
    """
    The output and the gradients of problem i, computed where the item is asked for. In a forked
    process PyTorch refuses gradients if there were some before, so there it is the output alone.
    """

    def __init__(self, gradients):
        self.gradients = gradients

    def __len__(self):
        return 4

    def __getitem__(self, i):
        problem = make_problem(i % 2 == 1, queries=300, seed=i, dtype=torch.float32)
        return problem.run() if self.gradients else [problem.call(*problem.tensors)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(method):
    """A worker of a loader, after the operator has run on several threads here."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        outputs = Outputs(gradients=method == "spawn")
        expected = [outputs[i] for i in range(len(outputs))]
        loader = torch.utils.data.DataLoader(
            outputs, batch_size=None, num_workers=1, multiprocessing_context=method, timeout=120
        )
        for items, wanted in zip(loader, expected, strict=True):
            for a, b in zip(items, wanted):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)
