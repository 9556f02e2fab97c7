"""What setup.py installs, with a compiler and without."""

import json
import os
import subprocess
import sys
import tarfile

from .conftest import ROOT, needs_compiler


def build(folder, **env):
    """`setup.py build` of the sources into `folder`/lib."""
    command = [sys.executable, "setup.py", "-q", "build"]
    command += ["--build-base", str(folder / "base"), "--build-lib", str(folder / "lib")]
    env = {**os.environ, "DDETR_CUDA": "0", **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def without_optimisation(folder):
    """The path of a compiler that takes a third of the time."""
    compiler = folder / "c++"
    compiler.write_text('#!/bin/bash\nexec c++ "${@/#-O3/-O0}"\n')
    compiler.chmod(0o755)
    return str(compiler)


def configs_in(folder):
    return [p for p in folder.rglob("*") if p.suffix in (".yaml", ".py")]


# An editable installation would offer its compiled modules to the built package too.
NOT_EDITABLE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
"""


def run(folder, code):
    """Python away from the sources, with the built package."""
    path = os.pathsep.join([str(folder / "lib"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", NOT_EDITABLE + code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


OPERATOR = """
import torch
from detectron2_ddetr import modeling
value, locations = torch.arange(4.0).view(1, 4, 1, 1), torch.full((1, 1, 1, 1, 1, 2), 0.5)
shapes, weights = torch.tensor([(2, 2)]), torch.ones(1, 1, 1, 1, 1)
out = modeling.ms_deform_attn(value, shapes, locations, weights)
print(modeling.__file__, modeling.HAS_CPU_KERNELS, out.item())
"""


@needs_compiler
def test_built_package_is_complete(tmp_path):
    """PEERS 7.9: every module is in the built package, which works away from the sources."""
    compiler = without_optimisation(tmp_path)
    done = build(tmp_path, CC=compiler, CXX=compiler)
    assert done.returncode == 0, done.stderr
    lib, package = tmp_path / "lib", ROOT / "detectron2_ddetr"
    sources = {p.relative_to(ROOT) for p in package.rglob("*.py")}
    pages = {p.relative_to(ROOT) for p in package.rglob("*.html")}
    assert pages and pages == {p.relative_to(lib) for p in lib.rglob("*.html")}
    configs = {p.relative_to(ROOT) for p in configs_in(ROOT / "configs")}
    packed = lib / "detectron2_ddetr" / "model_zoo"
    lazy = {p.relative_to(lib) for p in configs_in(packed / "configs") if p.suffix == ".py"}
    assert lazy and sources | lazy == {p.relative_to(lib) for p in lib.rglob("*.py")}
    assert configs == {p.relative_to(packed) for p in configs_in(packed / "configs")}
    weights = {p.name for p in (package / "model_zoo" / "weights").iterdir()}
    assert weights and weights == {p.name for p in (packed / "weights").iterdir()}
    zoo = "from detectron2_ddetr.model_zoo import get_config\n"
    zoo += "print(get_config('quick_start.yaml').SEED)"  # _BASE_ included
    path, has_kernels, result, seed = run(tmp_path, OPERATOR + zoo).split()
    assert path.startswith(str(lib)) and has_kernels == "True" and result == "1.5" and seed == "42"
    assert "on GPUs: _C_cuda was not built. DDETR_CUDA=0 left it out" in done.stderr
    assert json.loads((lib / "detectron2_ddetr" / "_build_report.json").read_text()) == {
        "_C_cuda": "DDETR_CUDA=0 left it out"
    }


def test_source_distribution_is_complete(tmp_path):
    """What the kernels are compiled from, and the configs."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist"]
    done = subprocess.run(
        [*command, "--dist-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    for pattern in (
        "csrc/**/*",
        "configs/**/*.yaml",
        "configs/**/*.py",
        "detectron2_ddetr/**/*.py",
        "detectron2_ddetr/**/*.html",
        "detectron2_ddetr/model_zoo/weights/*",
    ):
        sources = {str(p.relative_to(ROOT)) for p in ROOT.glob(pattern) if p.is_file()}
        assert sources and sources <= packed, sources - packed
    for name in ("quick_start.yaml", "lazy/quick_start.py", "lazy/common/model.py"):
        assert f"detectron2_ddetr/model_zoo/configs/{name}" in packed


def test_without_a_compiler_the_package_works(tmp_path):
    """The installation succeeds, says in one block what is missing, and the toolbox repeats it."""
    done = build(tmp_path, CC="no-such-compiler", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    block = done.stderr.split("on CPUs: _C was not built")[1].split("-----")[0]
    assert "no-such-compiler" in block and "install this package again" in block
    toolbox = "import runpy\nrunpy.run_module('detectron2_ddetr.collect_env', run_name='__main__')"
    path, has_kernels, result, report = run(tmp_path, OPERATOR + toolbox).split(maxsplit=3)
    assert path.startswith(str(tmp_path)) and has_kernels == "False" and result == "1.5"
    assert "CPU: PyTorch, because" in report and "no-such-compiler" in report


def test_required_cuda_kernels_that_cannot_be_built_are_an_error(tmp_path):
    done = build(tmp_path, DDETR_CUDA="1", CUDA_HOME=str(tmp_path), CXX="no-such-compiler")
    assert done.returncode != 0
    assert "nvcc" in done.stderr or "built without CUDA" in done.stderr


@needs_compiler
def test_what_a_failing_compiler_says_is_the_reason(tmp_path):
    compiler = tmp_path / "c++"
    error = "vectors.h:7: error: no such instruction"
    compiler.write_text(f'#!/bin/sh\n[ $# -le 2 ] && exec c++ "$@"\necho "{error}" >&2; exit 1\n')
    compiler.chmod(0o755)
    done = build(tmp_path, CC=str(compiler), CXX=str(compiler))
    assert done.returncode == 0, done.stderr
    assert error in done.stderr
    report = (tmp_path / "lib" / "detectron2_ddetr" / "_build_report.json").read_text()
    assert error in json.loads(report)["_C"]
