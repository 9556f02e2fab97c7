"""The path manager: local files and http downloads."""

from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as _PathManager

PathManager = _PathManager()
PathManager.register_handler(HTTPURLHandler())
