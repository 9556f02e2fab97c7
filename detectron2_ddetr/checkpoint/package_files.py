"""Weights that an installed package has: nothing is downloaded when a training starts."""

import importlib.util
import os

from iopath.common.file_io import PathHandler

from ..errors import MissingFileError
from ..toolbox import PathManager


def package_file(address: str) -> str:
    """
    The file of "package://NAME/path/in/the/package", of which no code is run.

    Raises:
        MissingFileError: when the package is not installed, or has no such file.
    """
    name, _, path = address.removeprefix(_PackageHandler.PREFIX).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(f"{address}: {name!r} is not installed; pip install {name}")
    file = os.path.join(spec.submodule_search_locations[0], *path.split("/"))
    if not os.path.isfile(file):
        raise MissingFileError(f"{address}: the package has no such file; there is no {file}")
    return file


class _PackageHandler(PathHandler):
    """Lets detectron2's own checkpointer load such an address, too."""

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return package_file(path)


PathManager.register_handler(_PackageHandler())
