"""Saving and loading checkpoints."""

from fvcore.common.checkpoint import Checkpointer

from . import comm


class DetectionCheckpointer(Checkpointer):
    """Saves on the main process only."""

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
