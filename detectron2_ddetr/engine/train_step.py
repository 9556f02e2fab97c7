"""One training step: losses and gradients of a batch, in parts if need be, checked, one update."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..toolbox import SimpleTrainer, comm
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


def file_names(batch: list[dict]) -> str:
    return ", ".join(image["file_name"] for image in batch)


class TrainStep(SimpleTrainer):
    """
    detectron2's step, with gradient accumulation, and stopped on all processes, before the update,
    when a loss or gradient is not finite on any of them.

    detectron2's own check of losses names no image, runs on one process only and may be skipped
    between logged iterations.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: LastBatch,
        optimizer: torch.optim.Optimizer,
        *,
        parts: int = 1,
        scale_losses: bool = False,
    ):
        """
        Args:
            parts: how many passes, one after the other, the batch of a process is divided into.
                Losses and gradients are those of the whole batch, except for what in the model
                depends on the images a pass has together: training BatchNorm, and padding.
            scale_losses: for float16, whose range is small.
        """
        super().__init__(model, data_loader, optimizer)
        self.parts = parts
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=scale_losses)
        self._batches: Iterator[list[dict]] | None = None

    def run_step(self) -> None:
        """
        Raises:
            FloatingPointError: names the processes and images; nothing was updated.
            InputError: when BatchNorm gets one value.
        """
        start = time.perf_counter()
        self._batches = self._batches or iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start
        self.update(batch, lambda losses: self._write_metrics(losses, data_time))

    def update(self, batch: list[dict], check: Callable[[dict[str, Tensor]], None]) -> None:
        """
        Trains on a batch.

        Args:
            check: gets the losses before anything is updated.
        """
        self.optimizer.zero_grad()
        try:
            losses = self._backward(batch)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise InputError(
                f"BatchNorm cannot be trained on one value, of {file_names(batch)} alone in a "
                "pass: raise SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN, lower "
                "SOLVER.ACCUMULATION_STEPS, or set MODEL.RESNETS.NORM FrozenBN"
            ) from error
        check(losses)
        try:
            self.grad_scaler.step(self.optimizer)
        except NonFiniteGradientError as error:
            raise FloatingPointError(
                f"{error}; images of this process: {file_names(batch)}"
            ) from error
        self.grad_scaler.update()

    def _backward(self, batch: list[dict]) -> dict[str, Tensor]:
        """Adds the gradients of a batch, and returns its losses."""
        distributed = isinstance(self.model, DistributedDataParallel)
        criterion = (self.model.module if distributed else self.model).criterion
        criterion.batch_boxes = sum(len(image["instances"]) for image in batch)
        losses: dict[str, Tensor] = {}
        try:
            for i in range(self.parts):
                part = batch[i * len(batch) // self.parts : (i + 1) * len(batch) // self.parts]
                # The processes exchange their gradients once, in the last pass.
                waits = distributed and i + 1 < self.parts
                with self.model.no_sync() if waits else contextlib.nullcontext():
                    of_part = self.model(part)
                    self.grad_scaler.scale(sum(of_part.values())).backward()
                for name, loss in of_part.items():
                    losses[name] = losses.get(name, 0) + loss.detach()
        finally:
            criterion.batch_boxes = None
        return losses

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if scaler := state_dict.get("grad_scaler"):  # else the training had none so far
            self.grad_scaler.load_state_dict(scaler)

    def _write_metrics(
        self,
        loss_dict: dict[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        losses = {name: loss.item() for name, loss in loss_dict.items()}
        ranks = comm.all_gather((losses, file_names(self.data_loader.batch)))
        faults = [
            f"losses of process {rank}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            + f"; its images: {files}"
            for rank, (terms, files) in enumerate(ranks)
            if not np.isfinite(sum(terms.values()))
        ]
        if faults:
            raise FloatingPointError("\n".join(faults))
        super()._write_metrics(loss_dict, data_time, prefix, iter)
