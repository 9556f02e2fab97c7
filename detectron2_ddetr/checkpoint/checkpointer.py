"""The checkpointer: weights are checked before anything is overwritten."""

import glob
import logging
import os
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..toolbox import DetectionCheckpointer
from .files import REFINES, load_checkpoint_file, model_state_dict, save_atomically
from .torchvision import convert_torchvision_state_dict

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """
    detectron2's checkpointer, made safe in three ways: files are read without running code,
    weights must fit the model exactly, and a file is complete or not there at all.

    `MODEL.WEIGHTS` may be a checkpoint of this package, or a torchvision ResNet for the backbone.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, needs_head: bool = False, **kwargs):
        """
        Args:
            needs_head: refuse weights of the backbone alone, and none at all: for evaluation.
            kwargs: of :class:`DetectionCheckpointer`, with what to save beside the model.
        """
        super().__init__(model, save_dir, **kwargs)
        self.needs_head = needs_head

    def save(self, name: str, **kwargs: Any) -> None:
        """Save as `name`.pth and tag it as the last checkpoint, each atomically."""
        if not self.save_dir or not self.save_to_disk:
            return
        # Tensors alone do not tell shared heads from refining ones.
        data = {"model": self.model.state_dict(), REFINES: self.model.head.with_box_refine}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        save_atomically(data, path)
        self.tag_last_checkpoint(f"{name}.pth")
        for abandoned in glob.glob(os.path.join(glob.escape(self.save_dir), "*.pth.tmp")):
            os.remove(abandoned)  # by a run that was killed while it was saving

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{path}.tmp", "w") as f:
            f.write(last_filename_basename)
            f.flush()
            os.fsync(f.fileno())
        os.replace(f"{path}.tmp", path)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError, ValueError: naming the file and what to do; the model is unchanged.
        """
        if self.needs_head and not path:
            raise ValueError("no weights to evaluate: set MODEL.WEIGHTS, or give --resume")
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f"checkpoint {path} does not exist; check MODEL.WEIGHTS, or the file "
                "last_checkpoint in OUTPUT_DIR"
            )
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # detectron2's, which after a refusal would refuse every other file too.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = load_checkpoint_file(filename)
        state_dict = model_state_dict(checkpoint, filename)
        if "model" not in checkpoint:
            checkpoint = {"model": state_dict}
        if "layer1.0.conv1.weight" in state_dict:
            checkpoint["model"] = convert_torchvision_state_dict(state_dict)
        refines = checkpoint.pop(REFINES, None)
        wants = self.model.head.with_box_refine
        if refines not in (None, wants):
            raise ValueError(
                f"{filename} does not fit this config: it was made with "
                f"MODEL.DETR.WITH_BOX_REFINE {refines}, the config has {wants}"
            )
        check_state_dict(
            checkpoint["model"], self.model.state_dict(), filename, needs_head=self.needs_head
        )
        return checkpoint


def check_state_dict(
    checkpoint: dict[str, Tensor], model: dict[str, Tensor], filename: str, needs_head: bool = False
) -> None:
    """
    A checkpoint must fit: all tensors of the model, or all of its backbone, in the right shapes.

    Raises:
        ValueError: saying what the checkpoint is and what the config wants.
    """
    if "transformer.level_embed" in checkpoint:
        raise ValueError(
            f"{filename}: a checkpoint of the official code. Convert it first: "
            "ddetr convert OFFICIAL.pth CONVERTED.pth"
        )
    wanted = set(model)
    if checkpoint and all(key.startswith("backbone.") for key in checkpoint):
        if needs_head:
            raise ValueError(
                f"{filename} holds the weights of a backbone, not a trained detector: set "
                "MODEL.WEIGHTS to a checkpoint of one, or give --resume"
            )
        wanted = {key for key in model if key.startswith("backbone.")}
        logger.info(f"{filename} holds backbone weights only; the rest starts from scratch")
    checks = _differences(checkpoint, model)
    missing, unexpected = sorted(wanted - set(checkpoint)), sorted(set(checkpoint) - wanted)
    shapes = [
        f"{key} {tuple(checkpoint[key].shape)} but the model has {tuple(model[key].shape)}"
        for key in sorted(wanted & set(checkpoint))
        if checkpoint[key].shape != model[key].shape
    ]
    if not (missing or unexpected or shapes or checks):
        return
    lines = checks or [
        f"{len(found)} {what}, the first: {found[0]}"
        for what, found in (
            ("tensors are missing", missing),
            ("tensors are not in the model", unexpected),
            ("tensors have another shape", shapes),
        )
        if found
    ]
    raise ValueError(f"{filename} does not fit this config: " + "; ".join(lines))


def _differences(checkpoint: dict[str, Tensor], model: dict[str, Tensor]) -> list[str]:
    """Differences that a config key explains, in words."""
    if not any(key.startswith("head.") for key in checkpoint):
        return []
    lines = []
    for what, key, of in (
        ("TWO_STAGE", "head.transformer.enc_output.weight", _contains),
        ("NUM_FEATURE_LEVELS", "head.transformer.level_embed", _length),
        ("NUM_CLASSES", "head.class_embed.0.bias", _length),
        ("NUM_QUERIES", "head.query_embed.weight", _length),
        ("ENC_LAYERS", "head.transformer.encoder.layers.", _num_layers),
        ("DEC_LAYERS", "head.transformer.decoder.layers.", _num_layers),
    ):
        found, expected = of(checkpoint, key), of(model, key)
        if found != expected and None not in (found, expected):
            lines.append(f"it was made with MODEL.DETR.{what} {found}, the config has {expected}")
    return lines


def _contains(state_dict: dict[str, Tensor], key: str) -> bool:
    return key in state_dict


def _length(state_dict: dict[str, Tensor], key: str) -> int | None:
    return len(state_dict[key]) if key in state_dict else None


def _num_layers(keys: Iterable[str], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)})
