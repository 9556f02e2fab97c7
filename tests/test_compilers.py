"""The kernels compile for those who have another compiler, or an older torch, than we have."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from .conftest import ROOT

SOURCES = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))


@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_clang_takes_the_kernels(path):
    """Of macOS it is the only compiler. GCC has vectors of more types than it."""
    command = ["clang++", "-std=c++17", "-fsyntax-only", "-Werror=unknown-warning-option"]
    command += [f"-I{folder}" for folder in [*include_paths(), sysconfig.get_path("include")]]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


#: The methods of torch::stable::Tensor in torch 2.10, the oldest that we compile against.
METHODS = set("""
    const_data_ptr data_ptr defined device dim element_size get get_device get_device_index
    is_contiguous is_cpu is_cuda mutable_data_ptr numel scalar_type set_requires_grad size sizes
    storage_offset stride strides
""".split())


def test_no_method_of_tensors_is_newer_than_the_oldest_torch():
    """TORCH_TARGET_VERSION hides newer functions, but not methods that stand in a header alone."""
    (header,) = (
        path
        for folder in include_paths()
        for path in Path(folder).glob("torch/csrc/stable/tensor_struct.h")
    )
    declared = set(re.findall(r"^  (?:[\w:<>*&]+ )+\*?(\w+)\(", header.read_text(), re.M))
    assert METHODS <= declared
    used = {
        name
        for path in (ROOT / "csrc").rglob("*")
        if path.is_file()
        for name in re.findall(r"(?:\.|->)(\w+)\(", path.read_text())
    }
    assert "storage_offset" in used and not used & (declared - METHODS)
