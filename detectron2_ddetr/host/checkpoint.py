"""Saving and loading checkpoints."""

from fvcore.common.checkpoint import Checkpointer
from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as _PathManager

from . import comm

PathManager = _PathManager()
PathManager.register_handler(HTTPURLHandler())


class DetectionCheckpointer(Checkpointer):
    """Saves on the main process only."""

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
