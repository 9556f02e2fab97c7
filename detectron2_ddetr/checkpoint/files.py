"""Checkpoint files: read as data only, written atomically."""

import argparse
import os
import re
import warnings
import zipfile
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingFileError
from .atomic import written_atomically
from .entries import LICENCE
from .hub import entries_beside, weights_of_folder
from .pickled import NotDataError, load_pickle
from .safetensors import is_safetensors, load_safetensors
from .shards import is_index, load_shards

# Official checkpoints carry the command line they were trained with. It is a plain container;
# nothing else that is not a tensor or a Python literal is let in. For the whole process, because
# detectron2's own checkpointer is to read them too.
torch.serialization.add_safe_globals([argparse.Namespace])

# How files of torch.save begin: a zip archive, or before PyTorch 1.6 a pickle of this number.
_ZIP, _OLD_TORCH = b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
#: Beginnings of sound files that are no checkpoints, what they are and what to do.
_OTHER_FILES = (
    (rb"\x89HDF", "an HDF5 file (Keras, MATLAB), whose weights are not of PyTorch: convert them"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page: its address needs another link or a login; "
     "download the file itself"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file: run git lfs pull"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive: unpack it first"),
)  # fmt: skip
#: Names under which training programs put the state dict, the first of which is taken.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "blobs")

_TAG_RULE = "write the name of a checkpoint beside it there, such as model_final.pth"


def load_checkpoint_file(path: str) -> dict[str, Any]:
    """
    Read a file of `torch.save`, a `.safetensors`, or a `.pkl` of numpy arrays, without running code
    from it.

    Args:
        path: may be a folder of Hugging Face transformers, or the index of the files that such
            weights are divided into. What its config.json says is among the entries, as
            :func:`entries_beside` has it.

    Raises:
        MissingFileError: when there is no such file.
        InputError: when the file is damaged, is no checkpoint, or holds objects other than
            tensors and plain data.
    """
    path = weights_of_folder(path) or path
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise MissingFileError(f"checkpoint {path} {what}; correct its path")
    entries = entries_beside(path)
    if is_index(path):
        return {"model": load_shards(path, _load_state_dict), **entries}
    with open(path, "rb") as f:
        start = f.read(64)
    if is_safetensors(start):
        tensors, metadata = load_safetensors(path)
        known = {LICENCE: metadata[LICENCE]} if LICENCE in metadata else {}
        return {"model": tensors, **known, **entries}
    try:
        if start.startswith((_ZIP, _OLD_TORCH)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*looks like a TorchScript archive")
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        else:
            checkpoint = load_pickle(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # random bytes make an unpickler raise almost anything
        raise InputError(f"{path}: {_why_not_loaded(path, start, error)}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(
            f"{path}: a checkpoint must be a dict, this is a {type(checkpoint).__name__}"
        )
    return {"model": model_state_dict(checkpoint, path), **entries} if entries else checkpoint


def _load_state_dict(path: str) -> dict[str, Tensor]:
    return model_state_dict(load_checkpoint_file(path), path)


def _why_not_loaded(path: str, start: bytes, error: Exception) -> str:
    blocked = re.search(r"GLOBAL (\S+)", str(error))
    if blocked or isinstance(error, NotDataError):
        wish = f"wants to call {blocked[1]}" if blocked else str(error)
        return (
            "not loaded, because a checkpoint may hold tensors and plain data only, and this one "
            f"{wish}. If you trust its source, load it there and save its state_dict() alone"
        )
    for pattern, what in _OTHER_FILES:
        if re.match(pattern, start):
            return f"no checkpoint, but {what}"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            return (
                "no checkpoint, but a TorchScript program: save its weights with "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            )
        if not any(name.endswith("data.pkl") for name in names):
            return f"no checkpoint, but an archive of {len(names)} files: unpack it first"
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        "not a readable checkpoint, it is damaged or incomplete, or not a file of torch.save "
        f"({why if start else 'it is empty'}). "
        "Copy or download it again, or go back to an earlier checkpoint"
    )


def model_state_dict(checkpoint: dict[str, Any], path: str) -> dict[str, Tensor]:
    """
    The state dict in a checkpoint: the checkpoint itself, its entry "model" or of another usual
    name, or the only entry that is one.

    Raises:
        InputError: when there is none.
    """
    found = checkpoint
    for _ in range(2):  # {"model": {"state_dict": ...}}
        inner = [name for name in _WRAPPERS if isinstance(found.get(name), dict)]
        if not inner and not _holds_tensors(found):
            inner = [k for k, v in found.items() if isinstance(v, dict) and _holds_tensors(v)]
            if len(inner) > 1:
                raise InputError(
                    f"{path}: holds {len(inner)} state dicts, {inner[:9]}, and none is called "
                    "model: save the one to use in a file of its own"
                )
        if inner:
            found = found[inner[0]]
    if not _holds_tensors(found) and found:
        raise InputError(
            f"{path}: no checkpoint of a model, its state dict must hold tensors only; the file "
            f"has {_listed(checkpoint)}" + ("" if found is checkpoint else f", {_listed(found)}")
        )
    return found


def _holds_tensors(value: dict) -> bool:
    """Whether it is a state dict that is not empty."""
    tensors = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    return bool(value) and tensors


def _listed(value: dict) -> str:
    entries = [f"{key}: {type(item).__name__}" for key, item in list(value.items())[:5]]
    return "{" + ", ".join(entries) + (", ...}" if len(value) > 5 else "}")


def save_atomically(data: Any, path: str) -> None:
    """Write with `torch.save` so that `path` holds either its old content or all of the new."""
    with written_atomically(path) as f:
        torch.save(data, f)


def last_checkpoint(folder: str) -> str | None:
    """
    The path of the newest checkpoint in the folder of a run; None if nothing was saved there.

    Raises:
        InputError: if the file that has its name has no name.
    """
    tag = os.path.join(folder, "last_checkpoint")
    if not os.path.isfile(tag):
        return None
    try:
        with open(tag, encoding="utf-8") as file:
            name = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{tag}: cannot be read ({error}); {_TAG_RULE}") from error
    if not name or not name.isprintable():
        raise InputError(f"{tag}: has {name!r}; {_TAG_RULE}")
    return os.path.join(folder, name)
