"""detectron2's training steps, with a check of the losses before anything is updated."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..toolbox import AMPTrainer, SimpleTrainer, comm
from .optimizer import NonFiniteGradientError


class LastBatch:
    """
    A loader that remembers the batch it gave last, so that an error can name its images.

    It is made when it is first iterated, since only then is the first iteration known.
    """

    def __init__(self, build_loader: Callable[[], Iterable[list[dict]]]):
        self.build_loader = build_loader
        self.batch: list[dict] = []
        #: A batch is being waited for: nothing of the iteration has begun.
        self.waiting = False

    def __iter__(self) -> Iterator[list[dict]]:
        self.waiting = True
        for self.batch in self.build_loader():
            self.waiting = False
            yield self.batch
            self.waiting = True

    def file_names(self) -> list[str]:
        return [x["file_name"] for x in self.batch]


class _FiniteLosses:
    """
    Stops on all processes when a loss or gradient is not finite on any of them.

    detectron2's own check names no image, runs on one process only and may be skipped between
    logged iterations. The data loader must be a :class:`LastBatch`.
    """

    def run_step(self) -> None:
        try:
            super().run_step()
        except NonFiniteGradientError as error:
            files = ", ".join(self.data_loader.file_names())
            raise FloatingPointError(f"{error}; images of this process: {files}") from error
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            files = ", ".join(self.data_loader.file_names())
            raise InputError(
                f"BatchNorm cannot be trained on one value, of {files} alone in a batch: raise "
                "SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN, or set MODEL.RESNETS.NORM FrozenBN"
            ) from error

    def _write_metrics(
        self,
        loss_dict: dict[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        losses = {name: loss.item() for name, loss in loss_dict.items()}
        ranks = comm.all_gather((losses, self.data_loader.file_names()))
        faults = [
            f"losses of process {rank}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            + f"; its images: {', '.join(files)}"
            for rank, (terms, files) in enumerate(ranks)
            if not np.isfinite(sum(terms.values()))
        ]
        if faults:
            raise FloatingPointError("\n".join(faults))
        super()._write_metrics(loss_dict, data_time, prefix, iter)


class FiniteSimpleTrainer(_FiniteLosses, SimpleTrainer):
    """:class:`SimpleTrainer` that stops on a loss that is not finite."""


class FiniteAMPTrainer(_FiniteLosses, AMPTrainer):
    """:class:`AMPTrainer` that stops on a loss that is not finite."""
