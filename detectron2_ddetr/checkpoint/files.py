"""Checkpoint files: read as data only, written atomically."""

import argparse
import os
import re
from typing import Any

import torch
from torch import Tensor

# Official checkpoints carry the command line they were trained with. It is a plain container;
# nothing else that is not a tensor or a Python literal is let in.
_ALLOWED_GLOBALS = [argparse.Namespace]

#: Key of a checkpoint that says whether its model refines boxes layer by layer.
REFINES = "with_box_refine"


def load_checkpoint_file(path: str) -> dict[str, Any]:
    """
    Read a `.pth` file without running code from it.

    Raises:
        ValueError: when the file is damaged, is no checkpoint, or holds objects other than
            tensors and plain data.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED_GLOBALS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # random bytes make an unpickler raise almost anything
        if blocked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path}: not loaded, because a checkpoint may hold tensors and plain data only, "
                f"and this one wants to call {blocked[1]}. If you trust its source, load it there "
                "and save its state_dict() alone"
            ) from error
        raise ValueError(
            f"{path}: not a readable checkpoint, it is damaged or incomplete, or not a file of "
            f"torch.save ({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "Copy or download it again, or go back to an earlier checkpoint"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{path}: a checkpoint must be a dict, this is a {type(checkpoint).__name__}"
        )
    return checkpoint


def model_state_dict(checkpoint: dict[str, Any], path: str) -> dict[str, Tensor]:
    """The entry "model" of a checkpoint, or the checkpoint itself where it is a state dict."""
    state_dict = checkpoint.get("model", checkpoint)
    if not isinstance(state_dict, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state_dict.items()
    ):
        raise ValueError(f"{path}: no checkpoint of a model, its state dict must hold tensors only")
    return state_dict


def save_atomically(data: Any, path: str) -> None:
    """Write with `torch.save` so that `path` holds either its old content or all of the new."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            torch.save(data, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
