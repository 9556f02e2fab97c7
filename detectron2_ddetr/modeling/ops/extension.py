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


def _load(module: str) -> bool:
    """Chosen by presence, never by failure: an installed but broken module raises."""
    if importlib.util.find_spec(f"{_PACKAGE}.{module}") is None:
        return False
    importlib.import_module(f"{_PACKAGE}.{module}")
    return True


HAS_CPU_KERNELS = _load("_C")
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
