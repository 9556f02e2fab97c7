"""The compiled kernels: which are installed, and why others are not. Importing this loads them."""

import importlib
import importlib.util
import json
from pathlib import Path

import torch

from . import ms_deform_attn  # noqa: F401  (defines what the kernels are kernels of)

_PACKAGE = __package__.split(".")[0]
#: Where setup.py says of each module why it was not built.
_REPORT = Path(__file__).parents[2] / "_build_report.json"


#: What the sources of `_C` are kernels of.
_CPU_OPERATORS = (
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_backward",
    "bernoulli_",
    "scale_kept",
    "scale_passed",
    "add_norm",
    "add_norm_backward",
)


def _load(module: str, operators: tuple[str, ...] = ()) -> bool:
    """
    Chosen by presence, never by failure: an installed but broken module raises.

    Args:
        operators: that it has CPU kernels for, unless it was built from other sources.
    """
    if importlib.util.find_spec(f"{_PACKAGE}.{module}") is None:
        return False
    loaded = importlib.import_module(f"{_PACKAGE}.{module}")
    missing = [name for name in operators if not _has_cpu_kernel(f"{_PACKAGE}::{name}")]
    if missing:
        raise ImportError(
            f"{loaded.__file__} was built from older sources than these: it has no "
            f"{', '.join(missing)}. Install the package again, as the README says"
        )
    return True


def _has_cpu_kernel(name: str) -> bool:
    known = torch._C._dispatch_has_kernel(name)
    return known and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


HAS_CPU_KERNELS = _load("_C", _CPU_OPERATORS)
# Needs the CUDA libraries of torch, which other builds of torch do not have.
HAS_CUDA_KERNELS = torch.version.cuda is not None and _load("_C_cuda")


def describe_backend() -> str:
    """What computes the operator on which device, and why: one line per kind of device."""
    report = json.loads(_REPORT.read_text(encoding="utf-8")) if _REPORT.exists() else {}
    report = {name: why.splitlines()[0] for name, why in report.items()}
    pytorch = "PyTorch, because no kernels were built: {}. To build them, install the package again"
    cpu = cuda = "compiled kernels"
    if HAS_CPU_KERNELS:
        cpu += f" ({torch.ops.detectron2_ddetr.cpu_kernels()})"
    else:
        cpu = pytorch.format(report.get("_C", "setup.py has not run"))
    if torch.version.cuda is None:
        cuda = "none, because this torch is built without CUDA"
    elif not HAS_CUDA_KERNELS:
        cuda = pytorch.format(report.get("_C_cuda", "setup.py has not run"))
    return f"CPU: {cpu}\nCUDA: {cuda}"
