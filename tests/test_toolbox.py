"""The seam: the two branches of the toolbox agree, by name, by signature and by default."""

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2_ddetr import host
from detectron2_ddetr.host import config as host_config
from detectron2_ddetr.host import engine

PACKAGE = Path(host.__file__).parents[1]
HOST_LINE_CAP = 1200  # may only shrink
_spec = importlib.util.find_spec("detectron2")
needs_detectron2 = pytest.mark.skipif(
    _spec is None or _spec.origin is None, reason="detectron2 is not installed"
)


def _toolbox_branches() -> list[list[ast.ImportFrom]]:
    tree = ast.parse((PACKAGE / "toolbox.py").read_text())
    branch = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and any(isinstance(n, ast.ImportFrom) for n in node.body)
    )
    return [
        [n for n in body if isinstance(n, ast.ImportFrom)] for body in (branch.body, branch.orelse)
    ]


def _names(imports: list[ast.ImportFrom]) -> list[str]:
    return sorted(alias.asname or alias.name for node in imports for alias in node.names)


def _run(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(PACKAGE.parent), env.pop("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_both_branches_list_the_same_names():
    ours, theirs = (_names(branch) for branch in _toolbox_branches())
    assert ours == theirs
    assert len(ours) == len(set(ours)) > 30


def test_unknown_toolbox_is_an_error(tmp_path):
    result = _run("import detectron2_ddetr.toolbox", tmp_path, DDETR_TOOLBOX="garbage")
    assert result.returncode != 0
    assert "ValueError" in result.stderr and "'garbage'" in result.stderr


def test_a_mere_folder_named_detectron2_does_not_count(tmp_path):
    (tmp_path / "detectron2").mkdir()
    code = (
        "import importlib.util as u; assert u.find_spec('detectron2') is not None;"
        "import detectron2_ddetr.toolbox as t; print(t.TOOLBOX)"
    )
    env = {"DDETR_TOOLBOX": "", "PYTHONPATH": ""}  # without a clone on this process's path
    result = _run(code, tmp_path, **env)
    assert result.returncode == 0, result.stderr
    code = "import importlib.util as u; s = u.find_spec('detectron2'); print(s and s.origin)"
    (tmp_path / "elsewhere").mkdir()
    elsewhere = _run(code, tmp_path / "elsewhere", **env).stdout.strip()
    assert result.stdout.strip() == ("host" if elsewhere == "None" else "detectron2")


def test_host_stays_small():
    lines = {
        p.name: len(p.read_text().splitlines()) for p in sorted((PACKAGE / "host").glob("*.py"))
    }
    assert sum(lines.values()) <= HOST_LINE_CAP, lines


# Parity with detectron2.

# A host parameter may be missing where it is out of scope; these differ on purpose.
DIFFERENT_DEFAULTS = {
    ("CfgNode.merge_from_file", "allow_unsafe"),  # safe unless asked otherwise
    ("configurable", "init_func"),  # without parentheses only
    ("_DatasetCatalog.get", "default"),
}


def _parameters(function) -> dict[str, inspect.Parameter]:
    return {n: p for n, p in inspect.signature(function).parameters.items() if n != "self"}


def _check_signature(name: str, ours, theirs) -> None:
    ours, theirs = _parameters(ours), _parameters(theirs)
    common = [n for n in theirs if n in ours]
    assert list(ours) == common, f"{name}: {list(ours)} is not a subset of {list(theirs)}"
    for parameter in common:
        if (name, parameter) not in DIFFERENT_DEFAULTS:
            assert ours[parameter].default == theirs[parameter].default, f"{name}: {parameter}"
            assert ours[parameter].kind == theirs[parameter].kind, f"{name}: {parameter}"


def _shared() -> list[tuple[str, str, str]]:
    """Name, detectron2's module and the host's module of everything in the toolbox."""
    theirs, ours = (
        {alias.asname or alias.name: (node, alias.name) for node in branch for alias in node.names}
        for branch in _toolbox_branches()
    )
    return [
        (
            name,
            theirs[name][0].module + ":" + theirs[name][1],
            "detectron2_ddetr." + ours[name][0].module + ":" + ours[name][1],
        )
        for name in sorted(theirs)
    ]


def _resolve(path: str):
    module, name = path.split(":")
    module = importlib.import_module(module)
    if not hasattr(module, name):
        return importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name)


@needs_detectron2
@pytest.mark.parametrize("name, theirs, ours", _shared())
def test_signatures_are_a_subset(name, theirs, ours):
    theirs, ours = _resolve(theirs), _resolve(ours)
    if inspect.ismodule(ours):
        members = {
            k: v
            for k, v in vars(ours).items()
            if not k.startswith("_") and getattr(v, "__module__", None) == ours.__name__
        }
        pairs = [(k, v, getattr(theirs, k)) for k, v in members.items() if callable(v)]
    elif name == "build_detection_test_loader":  # called with a config only
        pairs = [(name, ours, inspect.getclosurevars(theirs).nonlocals["from_config"])]
    elif callable(ours):
        pairs = [(name, ours, theirs)]
    else:
        assert type(ours).__name__ == type(theirs).__name__
        pairs = [(name, type(ours), type(theirs))]
    for label, our, their in pairs:
        if inspect.isclass(our):
            if "__init__" in vars(our):
                _check_signature(label, our.__init__, their.__init__)
            for method, function in vars(our).items():
                if not method.startswith("_") and callable(getattr(our, method)):
                    _check_signature(
                        f"{label}.{method}", getattr(our, method), getattr(their, method)
                    )
        else:
            _check_signature(label, our, their)


def _flatten(cfg, prefix: str = "") -> dict:
    flat = {}
    for key, value in cfg.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


@needs_detectron2
def test_default_config(tmp_path):
    from detectron2.config import get_cfg

    ours, theirs = _flatten(host_config.get_cfg()), _flatten(get_cfg())
    assert set(ours) <= set(theirs)
    assert {k: (v, type(v)) for k, v in ours.items()} == {
        k: (theirs[k], type(theirs[k])) for k in ours
    }
    path = tmp_path / "host.yaml"
    path.write_text(host_config.get_cfg().dump())
    loaded = get_cfg()
    loaded.merge_from_file(str(path))
    assert _flatten(loaded) == theirs


@needs_detectron2
def test_parser():
    from detectron2.engine import default_argument_parser

    argv = ["--config-file", "a.yaml", "--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "3"]
    ours, theirs = (
        vars(parser().parse_args(argv))
        for parser in (engine.default_argument_parser, default_argument_parser)
    )
    assert ours == theirs
