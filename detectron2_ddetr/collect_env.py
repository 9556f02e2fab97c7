"""``python -m detectron2_ddetr.collect_env`` prints what is in use: for bug reports, too."""

import os
import platform
from importlib import metadata

import torch

from . import __version__
from .modeling.ops.extension import describe_backend
from .toolbox import describe_toolbox


def describe_environment() -> str:
    """What is in use, as a table: toolbox, versions, devices, operator backend."""
    packages = ("torchvision", "fvcore", "scipy", "pycocotools", "opencv-python", "numpy")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "detectron2_ddetr": f"{__version__} ({os.path.dirname(__file__)})",
        "toolbox": describe_toolbox(),
        "operator": describe_backend(),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        **{name: metadata.version(name) for name in packages},
        "GPUs": ", ".join(gpus) or "none",
        "CPU threads": str(torch.get_num_threads()),
    }
    indent = "\n" + 18 * " "
    return "\n".join(f"{k:17s} {v.replace(chr(10), indent)}" for k, v in rows.items())


if __name__ == "__main__":
    print(describe_environment())
