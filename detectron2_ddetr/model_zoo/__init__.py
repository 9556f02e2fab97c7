"""The configs that come with the package, by name, as :mod:`detectron2.model_zoo` has its own."""

from difflib import get_close_matches
from pathlib import Path

from torch import nn

from ..config import load_config
from ..errors import MissingFileError
from ..toolbox import CfgNode, build_model

_CONFIGS = Path(__file__).parent / "configs"


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


def get_config(name: str) -> CfgNode:
    """The config itself, frozen; `name` as in :func:`get_config_file`, of YAML."""
    return load_config(get_config_file(name))


def get(name: str, device: str | None = None) -> nn.Module:
    """
    The model of a config, with random weights.

    Args:
        name: as in :func:`get_config_file`, of YAML.
        device: "cpu", "cuda", ...; None leaves what the config says.
    """
    opts = [] if device is None else ["MODEL.DEVICE", device]
    return build_model(load_config(get_config_file(name), opts))
