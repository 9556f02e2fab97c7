"""The checkpointer: weights are checked before anything is overwritten."""

import glob
import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import InputError, MissingFileError
from ..toolbox import DetectionCheckpointer
from . import package_files as _package_files  # noqa: F401  registers
from .class_names import class_names_of, difference_of_names
from .entries import CATEGORY_IDS, CLASS_NAMES, DILATED, LICENCE, REFINES, SOURCE, dilated_of
from .files import (
    last_checkpoint,
    load_checkpoint_file,
    model_state_dict,
    save_atomically,
)
from .fine_tune import fit_classes_and_queries, tensors_by_part
from .fit import check_dilation, check_refinement, check_state_dict, is_dilated
from .hub import weights_of_folder
from .projects import class_names_by_rows
from .reading import read_state_dict
from .train_only import with_train_only

logger = logging.getLogger(__name__)

_DETECTRON2_FILES = "https://dl.fbaipublicfiles.com/detectron2/"


class Checkpointer(DetectionCheckpointer):
    """
    detectron2's checkpointer, made safe in three ways: files are read without running code,
    weights must fit the model exactly, and a file is complete or not there at all.

    `MODEL.WEIGHTS` may be whatever :func:`read_state_dict` knows.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        needs_head: bool = False,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | str] | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            needs_head: refuse weights of the backbone alone, and none at all: for evaluation.
            class_names: of the data set, by class number. They are saved, and compared with those
                of a file that is loaded: to evaluate or to resume they must be equal, and weights
                to start from may have others.
            category_ids: of these classes in the data set, to be saved with them.
            kwargs: of :class:`DetectionCheckpointer`, with what to save beside the model.
        """
        super().__init__(model, save_dir, **kwargs)
        self.needs_head = needs_head
        self.class_names = None if class_names is None else list(class_names)
        self.category_ids = None if category_ids is None else list(category_ids)
        #: What the file that was loaded last says of its classes, as `class_names` and
        #: `category_ids`; None where it says nothing.
        self.found_names: list[str] | None = None
        self.found_ids: list[int | str] | None = None
        self._resumes = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Save as `name`.pth and tag it as the last checkpoint, each atomically."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        self.save_weights(name, **states, **kwargs)
        self.tag_last_checkpoint(f"{name}.pth")
        for abandoned in glob.glob(os.path.join(glob.escape(self.save_dir), "*.pth.tmp")):
            os.remove(abandoned)  # by a run that was killed while it was saving

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Save the model and the names of its classes as `name`.pth, atomically."""
        # Tensors alone do not tell shared heads from refining ones, nor a dilated backbone.
        data = {
            "model": self.model.state_dict(),
            REFINES: getattr(self.model.head, REFINES, None),
            DILATED: is_dilated(self.model),
        }
        if self.class_names is not None:
            data[CLASS_NAMES] = self.class_names
        if self.category_ids is not None:
            data[CATEGORY_IDS] = self.category_ids
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        save_atomically(data | kwargs, path)

    def get_checkpoint_file(self) -> str:
        return last_checkpoint(self.save_dir) or ""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            f.write(last_filename_basename)
            f.flush()
            os.fsync(f.fileno())
        os.replace(f"{path}.tmp", path)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        Args:
            checkpointables: what to load beside the model; None, to resume, for all.

        Raises:
            MissingFileError, InputError: naming the file and what to do; the model is unchanged.
        """
        if self.needs_head and not path:
            raise InputError("no weights to evaluate: set MODEL.WEIGHTS, or give --resume")
        self._resumes = checkpointables is None
        try:
            return super().load(path and self._local_path(path), checkpointables)
        finally:
            # detectron2's, which after a refusal would refuse every other file too.
            self._parsed_url_during_load = None

    def _local_path(self, path: str) -> str:
        """Where the file is on this machine; an address is downloaded first."""
        if "://" not in path:
            path = weights_of_folder(path) or path
            if not os.path.isfile(path):
                what = "is a folder" if os.path.isdir(path) else "does not exist"
                raise MissingFileError(
                    f"checkpoint {path} {what}; check MODEL.WEIGHTS, or the file "
                    "last_checkpoint in OUTPUT_DIR"
                )
            return path
        address = path.partition("?")[0].replace("detectron2://", _DETECTRON2_FILES)
        try:
            local = self.path_manager.get_local_path(address)
        except MissingFileError:  # of a package:// address
            raise
        except (OSError, KeyError, RuntimeError) as error:  # the latter two of a catalog:// address
            raise MissingFileError(
                f"{path} cannot be downloaded ({error}); download it on a machine that can, and "
                "set MODEL.WEIGHTS to the copy"
            ) from error
        if not os.path.isfile(local):
            raise MissingFileError(
                f"{path}: such addresses cannot be downloaded; get the file by other means, and "
                "set MODEL.WEIGHTS to the copy"
            )
        return local

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = load_checkpoint_file(filename)
        state_dict = model_state_dict(checkpoint, filename)
        check_refinement(checkpoint.get(REFINES), self.model, filename)
        found, family, part = read_state_dict(state_dict, self.model, filename)
        source = f"{filename}, {family}," if family else filename
        expected = self.model.state_dict()
        names = class_names_of(checkpoint, filename) or class_names_by_rows(family, found)
        self.found_names, self.found_ids = names, checkpoint.get(CATEGORY_IDS)
        if self._begins_training:
            tensors, lines = fit_classes_and_queries(found, expected, names, self.class_names)
        else:
            check_dilation(dilated_of(checkpoint), self.model, filename)
            self._check_class_names(names, filename)
            tensors, lines = found, []
        complete, said = with_train_only(tensors, self.model)
        if said:
            logger.info(f"{filename} {said}")
        check_state_dict(complete, expected, source, needs_head=self.needs_head, part=part)
        if self._begins_training:
            lines += tensors_by_part(found, tensors, expected, len(state_dict))
            logger.info("\n".join([f"training starts from {source.removesuffix(',')}", *lines]))
        # What is left is for the caller.
        consumed = {"model", REFINES, DILATED, CLASS_NAMES, CATEGORY_IDS, SOURCE, LICENCE}
        consumed |= state_dict.keys()
        extra = {k: v for k, v in checkpoint.items() if k not in consumed and v is not state_dict}
        return {"model": complete, **extra}

    @property
    def _begins_training(self) -> bool:
        """Whether weights of other classes are a start, and not what is evaluated or resumed."""
        return self.class_names is not None and not (self.needs_head or self._resumes)

    def _check_class_names(self, found: list[str] | None, filename: str) -> None:
        if found is None or self.class_names is None:
            return
        if difference := difference_of_names(found, self.class_names):
            raise InputError(
                f"{filename} was trained on {difference}. Give the data set that it was trained "
                "on, or number the categories of this one alike: classes are in the order of "
                "their ids; to train on from its weights, leave --resume out and set MODEL.WEIGHTS"
            )
