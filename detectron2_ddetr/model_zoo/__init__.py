"""The configs that come with the package, by name, as :mod:`detectron2.model_zoo` has its own."""

from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from ..checkpoint.checkpointer import Checkpointer
from ..config import load_config
from ..errors import MissingFileError
from ..toolbox import CfgNode, build_model

_CONFIGS = Path(__file__).parent / "configs"
_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/v0.1.0/converted_"
_DETR = "https://dl.fbaipublicfiles.com/detr/"
#: Trained weights of configs: our own, and the authors', some of them in the files of detrex.
_WEIGHTS = {
    "quick_start.yaml": "package://detectron2_ddetr/model_zoo/weights/quick_start.pth",
    "deformable_detr/deformable_detr_R_50_50ep.yaml": f"{_DETREX}deformable_detr_r50.pth",
    "deformable_detr/deformable_detr_R_50_box_refine_50ep.yaml": (
        f"{_DETREX}deformable_detr_r50_with_box_refine_50ep.pth"
    ),
    "deformable_detr/deformable_detr_R_50_two_stage_50ep.yaml": (
        f"{_DETREX}deformable_detr_two_stage_50ep.pth"
    ),
    "detr/detr_R_50_500ep.yaml": f"{_DETR}detr-r50-e632da11.pth",
    "detr/detr_R_50_dc5_500ep.yaml": f"{_DETR}detr-r50-dc5-f0fb7ef5.pth",
    "detr/detr_R_101_500ep.yaml": f"{_DETR}detr-r101-2c7b67e5.pth",
}


def list_config_files() -> list[str]:
    """The names that :func:`get_config_file` knows: YAML, and the LazyConfigs in lazy/."""
    paths = [*_CONFIGS.rglob("*.yaml"), *_CONFIGS.glob("lazy/*.py")]
    return sorted(path.relative_to(_CONFIGS).as_posix() for path in paths)


def get_config_file(name: str) -> str:
    """
    The path of a config.

    Args:
        name: such as "deformable_detr/deformable_detr_R_50_50ep.yaml", or its last part alone.
            What ends in .py is for detectron2's `LazyConfig.load`.

    Raises:
        MissingFileError: naming the nearest ones.
    """
    names = list_config_files()
    found = [known for known in names if name in (known, known.rpartition("/")[2])]
    if not found:
        by_end = {known.rpartition("/")[2]: known for known in names}
        near = get_close_matches(Path(name).name, by_end, n=3, cutoff=0.5)
        known = ", ".join(by_end[end] for end in near) or ", ".join(names)
        raise MissingFileError(
            f"config file {name} does not exist, neither as a path nor in the model zoo, "
            f"which has {known}"
        )
    return str(_CONFIGS / found[0])


def get_checkpoint_url(name: str) -> str:
    """
    Where the trained weights of a config are, for `MODEL.WEIGHTS`; MODEL_ZOO.md has their sources
    and licences.

    Args:
        name: as in :func:`get_config_file`.

    Raises:
        MissingFileError: if there are none that can be had without a browser.
    """
    known = Path(get_config_file(name)).relative_to(_CONFIGS).as_posix()
    if known not in _WEIGHTS:
        raise MissingFileError(
            f"no weights of {known} can be downloaded by a program; MODEL_ZOO.md says where the "
            "authors have theirs: download the file, and set MODEL.WEIGHTS to it"
        )
    return _WEIGHTS[known]


def get_config(name: str, trained: bool = False) -> CfgNode:
    """
    The config itself, frozen.

    Args:
        name: as in :func:`get_config_file`, of YAML.
        trained: with MODEL.WEIGHTS of a trained detector, instead of those that a training of the
            config starts from.
    """
    opts = ["MODEL.WEIGHTS", get_checkpoint_url(name)] if trained else []
    return load_config(get_config_file(name), opts)


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """
    The model of a config, in training mode.

    Args:
        name: as in :func:`get_config_file`, of YAML.
        trained: with the weights of :func:`get_checkpoint_url`; otherwise they are random.
        device: "cpu", "cuda", ...; None is what the config says, and the CPU where that is a GPU
            and there is none.
    """
    cfg = get_config(name, trained).clone()
    cfg.defrost()
    if device is not None:
        cfg.MODEL.DEVICE = device
    elif not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    if trained:
        Checkpointer(model, needs_head=True).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return model
