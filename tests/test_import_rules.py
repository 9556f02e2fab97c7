"""Who may import whom, what an import does, and that no exception is swallowed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import detectron2_ddetr

from .conftest import ROOT

PACKAGE = Path(detectron2_ddetr.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """(line, absolute dotted name) of every import; relative ones resolved from the repository."""
    found = []
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            found += [(node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant)]
    return found


def names(path, package):
    """What `path` imports from `package`."""
    return [f"{path.name}:{i} {n}" for i, n in imports(path) if f"{n}.".startswith(f"{package}.")]


def run(code, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_waiting_threads_leave_their_core():
    """OpenMP's runtime says what it has read; a policy that the user chose stays."""
    code = "import detectron2_ddetr"
    for chosen, spins in ((None, "'0'"), ("active", "'30000000000'")):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        env |= {"OMP_DISPLAY_ENV": "verbose", **({"OMP_WAIT_POLICY": chosen} if chosen else {})}
        command = [sys.executable, "-W", "ignore", "-c", code]
        said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stderr
        if "GOMP_SPINCOUNT" not in said:
            pytest.skip("PyTorch uses another OpenMP runtime than GNU's")
        assert f"GOMP_SPINCOUNT = {spins}" in said


def test_only_the_toolbox_imports_detectron2_or_the_host():
    for path in [*SOURCES, *ROOT.glob("*.py")]:
        if path != PACKAGE / "toolbox.py":
            assert not names(path, "detectron2"), path
            if path.parent.name != "host":
                assert not names(path, "detectron2_ddetr.host"), path
    assert names(PACKAGE / "toolbox.py", "detectron2")
    assert names(PACKAGE / "toolbox.py", "detectron2_ddetr.host")


def test_modeling_imports_nothing_above_it():
    allowed = {"torch", "torchvision", "scipy", "numpy", *sys.stdlib_module_names}
    for path in (PACKAGE / "modeling").rglob("*.py"):
        for line, name in imports(path):
            inside = name.startswith(("detectron2_ddetr.modeling", "detectron2_ddetr._C"))
            assert inside or name.split(".")[0] in allowed, f"{path.name}:{line} {name}"


#: The rooms from the ground floor up; a room imports from its own floor's rooms and from below,
#: unless a circle would come of it. "" stands for the package itself and its public face.
FLOORS = [
    {"modeling", "host", "errors"},
    {"toolbox"},
    {
        "config",
        "config_rules",
        "query_rules",
        "backbones",
        "stock_trainer",
        "counters",
        "narrow_maps",
        "onednn",
        "weight_gradients",
    },
    {"build", "collect_env", "inputs", "measuring", "inference_form"},
    {"data", "checkpoint", "meta_arch", "systems"},
    {"engine", "analysis"},
    {"visualization", "model_zoo", "predictor", "export"},
    {"adapters", "demo"},
    {"plugin", "cli", "commands", "evaluate"},
    {"tools", "train_net"},
]


def room(path):
    """The room that a source file lies in; None for the face of the package."""
    if path.is_relative_to(PACKAGE):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        return None if name == "__init__" else name
    return "tools" if path.parent.name == "tools" else path.stem


def imported_rooms(path):
    """(line, room) of each import of this package, but for what belongs to the package itself."""
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == PACKAGE.name and len(parts) > 1 and (PACKAGE / parts[1]).exists():
            yield line, parts[1]
        elif parts[0] == PACKAGE.name and len(parts) > 1 and (PACKAGE / f"{parts[1]}.py").exists():
            yield line, parts[1]


def test_no_arrow_runs_up():
    """HOUSE 1: who may import whom; every file lies in a room that has a floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in [*SOURCES, ROOT / "train_net.py", *(ROOT / "tools").glob("*.py")]:
        here = room(path)
        if here is None:
            continue
        assert here in floor, f"{path} lies in no room"
        for line, there in imported_rooms(path):
            assert floor[there] <= floor[here], f"{path}:{line} imports {there}, which is above"


def test_no_circle():
    """Neither among the rooms nor among the files."""
    graphs = {"rooms": {}, "files": {}}
    for path in SOURCES:
        here = room(path)
        if here is None:
            continue
        graphs["rooms"].setdefault(here, set()).update(r for _, r in imported_rooms(path))
        for _, name in imports(path):
            parts = name.split(".")
            if parts[0] != PACKAGE.name:
                continue
            for depth in (len(parts), len(parts) - 1):  # a module, or a name that is in it
                there = PACKAGE.parent.joinpath(*parts[:depth]).with_suffix(".py")
                if there.exists() and there != path:
                    graphs["files"].setdefault(path, set()).add(there)
    for graph in graphs.values():
        left = {name: used - {name} for name, used in graph.items()}
        while free := [name for name, used in left.items() if not used & set(left)]:
            for name in free:
                del left[name]
        assert not left, f"a circle: {left}"


def test_the_host_imports_nothing_of_the_plugin():
    for path in (PACKAGE / "host").glob("*.py"):
        for line, name in imports(path):
            if name.startswith("detectron2"):
                assert name.startswith("detectron2_ddetr.host"), f"{path.name}:{line} {name}"


def test_no_exception_is_swallowed_wholesale():
    """PEERS 7.10: a bare or general `except` hides the errors of what it surrounds."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in (
                    "everything",
                    "Exception",
                    "BaseException",
                ), f"{path.name}:{node.lineno} catches {caught}"


BLOCK = """
import sys
for name in ("detectron2", "fvcore", "pycocotools", "iopath", "cv2", "yacs"):
    sys.modules[name] = None  # as if it were not installed
"""


def test_modeling_runs_with_pytorch_alone():
    run(
        BLOCK + "import torch\n"
        "from detectron2_ddetr.modeling import *\n"
        "from detectron2_ddetr.modeling import DeformableDETRHead\n"
        "transformer = DeformableTransformer(32, 4, 1, 1, 64, n_levels=1)\n"
        "head = DeformableDETRHead(input_proj=FeatureProjector([5], 32, 1),\n"
        "    transformer=transformer, num_classes=3, num_queries=7)\n"
        "outputs = head([torch.rand(2, 5, 3, 4)], torch.zeros(2, 24, 32, dtype=torch.bool))\n"
        "assert outputs['pred_boxes'].shape == (2, 7, 4)\n"
        "assert 'detectron2_ddetr.toolbox' not in sys.modules\n"
    )


def test_without_fvcore_the_error_names_what_is_missing():
    """HANDBOOK 4.5: any other name of the package raises the error of the missing import."""
    run(
        BLOCK + "import detectron2_ddetr\n"
        "try:\n    detectron2_ddetr.load_config\n"
        "except ImportError as error:\n    name = error.name.split('.')[0]\n"
        "    assert name in ('fvcore', 'iopath'), error\n"
        "else:\n    assert False\n",
        DDETR_TOOLBOX="host",
    )


def test_importing_the_package_registers_everything():
    run(
        "import sys, detectron2_ddetr\n"
        "toolbox = sys.modules['detectron2_ddetr.toolbox']\n"
        "get = toolbox.META_ARCH_REGISTRY.get\n"
        "assert get('DeformableDETR') is detectron2_ddetr.DeformableDETR\n"
        "toolbox.BACKBONE_REGISTRY.get('build_detr_resnet_backbone')\n"
        "assert 'bccd_train' in toolbox.DatasetCatalog.list()\n"
        "if toolbox.TOOLBOX == 'detectron2':\n"
        "    from detectron2.modeling import META_ARCH_REGISTRY as theirs\n"
        "    assert theirs.get('DeformableDETR') is detectron2_ddetr.DeformableDETR\n"
    )
