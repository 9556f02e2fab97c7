"""What setup.py installs."""

import os
import subprocess
import sys

from .conftest import ROOT


def test_built_package_is_complete(tmp_path):
    """PEERS 7.9: every module is in the built package, which works away from the sources."""
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "base")]
    subprocess.run([*build, "--build-lib", str(tmp_path / "lib")], cwd=ROOT, check=True)
    sources = {p.relative_to(ROOT) for p in (ROOT / "detectron2_ddetr").rglob("*.py")}
    assert sources == {p.relative_to(tmp_path / "lib") for p in (tmp_path / "lib").rglob("*.py")}

    path = os.pathsep.join([str(tmp_path / "lib"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    code = "import detectron2_ddetr as d; print(d.__file__, d.build_optimizer)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "lib") in done.stdout
