"""Saving and loading checkpoints."""

from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer

from . import comm


class DetectionCheckpointer(Checkpointer):
    """Saves on the main process only, and loads tensors and plain values only."""

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return torch.load(filename, map_location="cpu", weights_only=True)
