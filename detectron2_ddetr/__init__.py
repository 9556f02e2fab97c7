"""Deformable DETR for detectron2. Importing it registers the meta-architecture `DeformableDETR`."""

import importlib
import importlib.util
import os
import warnings

__version__ = "0.1.0"

# Read once, when PyTorch is loaded. By default a thread that waits for the others keeps its core
# busy for a while, a thousand times a step: one more process on two cores made a training step
# five to nine times as long, where half as long again would be its share.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# `python -m detectron2_ddetr.X` imports module X with the package and runs it once more.
warnings.filterwarnings("ignore", message="'detectron2_ddetr.*' found in sys.modules")

if importlib.util.find_spec("fvcore"):
    with warnings.catch_warnings():
        # fvcore compiles some of its functions when it is imported.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from .plugin import *  # noqa: F401,F403


def __getattr__(name: str):
    """
    With PyTorch alone, `detectron2_ddetr.modeling` can be imported, and any other public name
    raises the error of the import that is missing.
    """
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".plugin", __name__), name)
