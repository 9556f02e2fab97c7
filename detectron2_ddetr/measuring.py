"""Seconds and memory of calls, and the machine that they are of."""

import ctypes
import gc
import math
import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Sides = dict[str, Callable[[], object]]
_PROC = Path("/proc")  # of Linux


def measure(
    sides: Sides, repeat: int, warmup: int, clock: Callable[[], float], device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call of each side, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for turn in range(-warmup, repeat):
        for name, run in sides.items():
            gc.collect()
            wait()
            start = clock()
            run()
            wait()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


def peak_extra_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """Most memory that a call needs beyond what is held before; None where that is not known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if platform.libc_ver()[0] != "glibc":
        return None

    def kib(name: str) -> int:
        return int(re.search(rf"{name}:\s*(\d+)", (_PROC / "self" / "status").read_text())[1])

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, or reusing it would not count
    (_PROC / "self" / "clear_refs").write_text("5")  # resets VmHWM, the peak of VmRSS
    before = kib("VmRSS")
    run()
    return (kib("VmHWM") - before) / 1024


def power(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """By which power of the sizes the amounts grow, by least squares of the logarithms."""
    x, y = ([math.log(v) for v in values] for values in (sizes, amounts))
    return statistics.linear_regression(x, y).slope


def machine(device: torch.device) -> str:
    """The processor that does the work, and how many of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = (_PROC / "cpuinfo").read_text() if _PROC.exists() else ""
    name = re.search(r"model name\s*: (.*)", info)
    return f"{name[1] if name else platform.processor()}, {os.cpu_count()} cores"
