"""Saving and loading checkpoints."""

from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer

from . import comm
from .file_io import PathManager


class DetectionCheckpointer(Checkpointer):
    """Saves on the main process only and loads .pth files, tensors and plain values only."""

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pth"):
            raise NotImplementedError(f"{filename}: only .pth files load without detectron2")
        loaded = self._torch_load(filename)
        return loaded if "model" in loaded else {"model": loaded}

    def _torch_load(self, f: str) -> dict[str, Any]:
        return torch.load(f, map_location="cpu", weights_only=True)
